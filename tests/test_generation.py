"""What transformers' users bring along: generate, streamers, stopping criteria, outputs, adapters."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from functools import cache, reduce
from threading import Thread

import pytest
import torch
from transformers import (
    GenerationConfig,
    MaxTimeCriteria,
    NoBadWordsLogitsProcessor,
    StoppingCriteriaList,
    TextDiffusionStreamer,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.utils import ModelOutput

from dllm_sampling import (
    CheckpointError,
    ConfigurationError,
    DecodingError,
    Sampler,
    for_transformers,
    load_model,
)

from .models import tiny

QUESTION = "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"
SHORT = "Tom has 3 cats. Tom gets 4. How many cats?"
BLOCKS = {"name": "fixed_blocks", "block_length": 8}


@cache
def model():
    return load_model()


def sampler(**settings):
    return Sampler(model(), **{"cache": "dual", "schedule": BLOCKS, **settings})


def encoded(*questions):
    tokenizer = model().tokenizer
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in questions
    ]
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)


def generate(chosen, *questions, streamer=None, seed=None, **arguments):
    inputs = encoded(*questions)
    decode = for_transformers(chosen, streamer=streamer, seed=seed)
    if not {"max_length", "generation_config"} & arguments.keys():
        arguments.setdefault("max_new_tokens", 64)
    return model().model.generate(**inputs, custom_generate=decode, **arguments)


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.chunks, self.ended = [], 0

    def put(self, value):
        self.chunks.append(value.clone())

    def end(self):
        self.ended += 1

    @property
    def text(self):
        return torch.cat(self.chunks, 1)


class Drafts(Recorder):
    def __init__(self):
        super().__init__()
        self.drafts = []

    def put_draft(self, value):
        self.drafts.append((sum(c.shape[1] for c in self.chunks), value))


# model.generate ------------------------------------------------------------------------------------


def test_generate_of_transformers_writes_what_the_sampler_writes():
    expected = sampler().generate([QUESTION, SHORT], 64)
    assert torch.equal(generate(sampler(), QUESTION, SHORT), expected.sequences)


def test_the_result_is_a_model_output_where_transformers_is_asked_for_one():
    result = generate(sampler(), QUESTION, return_dict_in_generate=True)
    expected = sampler().generate(QUESTION, 64)
    assert torch.equal(result.sequences, expected.sequences)
    assert (result.texts, result.forwards) == (expected.texts, expected.forwards)


def test_lengths_are_those_of_transformers():
    width = encoded(QUESTION)["input_ids"].shape[1]
    assert generate(sampler(), QUESTION, max_new_tokens=9).shape[1] == width + 9
    assert generate(sampler(), QUESTION, max_length=width + 5).shape[1] == width + 5
    config = GenerationConfig(max_new_tokens=7)
    given = generate(sampler(), QUESTION, generation_config=config)
    assert given.shape[1] == width + 7


def test_do_sample_samples_as_a_sampler_with_these_settings_does():
    sampled = generate(sampler(), QUESTION, do_sample=True, temperature=0.8, top_k=20, top_p=0.9, seed=3)
    own = sampler(sampling={"temperature": 0.8, "top_k": 20, "top_p": 0.9})
    expected = own.generate(QUESTION, 64, seed=3).sequences
    assert torch.equal(sampled, expected)
    assert not torch.equal(sampled, sampler().generate(QUESTION, 64).sequences)
    # A sampler that samples by itself does so, and is not overruled.
    assert torch.equal(generate(own, QUESTION, do_sample=True, seed=3), expected)
    with pytest.raises(ConfigurationError, match=r"temperature=0\.7 contradicts"):
        generate(own, QUESTION, do_sample=True, temperature=0.7)


def test_the_seed_is_drawn_from_torch_where_none_is_given():
    def drawn(seed):
        torch.manual_seed(seed)
        return [generate(sampler(), QUESTION, do_sample=True, temperature=2.0) for _ in range(2)]

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_return_sequences_are_samples_of_their_own():
    rows = generate(
        sampler(), QUESTION, SHORT, do_sample=True, temperature=2.0, num_return_sequences=3, seed=0
    )
    assert len(rows) == 6
    assert len({tuple(row.tolist()) for row in rows}) == 6


def test_special_ids_may_be_given():
    plain = sampler().generate(QUESTION, 64)
    width = encoded(QUESTION)["input_ids"].shape[1]
    newline = model().tokenizer.convert_tokens_to_ids(model().tokenizer.tokenize("1\n"))[-1]
    written = plain.sequences[0, width:].tolist()
    assert newline in written
    result = generate(sampler(), QUESTION, eos_token_id=newline, pad_token_id=0, return_dict_in_generate=True)
    assert result.tokens.tolist() == [written.index(newline) + 1]
    assert set(result.sequences[0, width + int(result.tokens[0]) :].tolist()) == {0}
    with pytest.raises(ConfigurationError, match=r"eos_token_ids=\(99999,\)"):
        generate(sampler(), QUESTION, eos_token_id=99999)


def test_suppressed_tokens_are_not_written():
    plain = sampler().generate(QUESTION, 64)
    width = encoded(QUESTION)["input_ids"].shape[1]
    first = int(plain.sequences[0, width])
    assert first not in generate(sampler(), QUESTION, suppress_tokens=[first])[0, width:].tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"min_length": 40}, "MinLengthLogitsProcessor"),
        ({"do_sample": True, "min_p": 0.1}, "MinPLogitsWarper"),
        ({"min_p": 0.1}, "min_p=0.1 has no effect without do_sample=True"),
        ({"top_p": 0.5}, "top_p=0.5 has no effect without do_sample=True"),
        ({"top_k": 3}, "top_k=3 has no effect without do_sample=True"),
        ({"temperature": 0.7}, "temperature=0.7 has no effect without do_sample=True"),
        ({"length_penalty": 2.0}, "length_penalty=2.0"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"logits_processor": [NoBadWordsLogitsProcessor([[9]])]}, "NoBadWordsLogitsProcessor"),
        ({"position_ids": torch.arange(32)[None] + 5}, "position_ids"),
        ({"labels": torch.zeros(1, 32)}, "labels"),
    ],
)
def test_what_a_canvas_cannot_honour_is_refused_by_name(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        generate(sampler(), QUESTION, **arguments)


def test_a_cache_that_holds_text_is_refused():
    ids = encoded(QUESTION)["input_ids"]
    past = model().model(ids, use_cache=True).past_key_values
    with pytest.raises(ConfigurationError, match="past_key_values"):
        generate(sampler(), QUESTION, past_key_values=past)


def test_another_model_is_refused():
    with pytest.raises(ConfigurationError, match="another model than the sampler's"):
        tiny().model.generate(torch.tensor([[3, 4]]), custom_generate=for_transformers(sampler()))


# Streamers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unmasking": {"name": "p2", "steps": 24}, "cache": "none"},
        {"schedule": "whole_canvas", "cache": "none"},
        {"schedule": "multi_block", "cache": "none"},
        {"schedule": "sliding", "cache": "none"},
        {"schedule": "adablock", "cache": "none"},
        {"stop_at_eos": False},
    ],
    ids=str,
)
def test_a_streamer_gets_prompt_and_text_from_left_to_right(settings):
    streamer = Drafts()
    chosen = sampler(**settings)
    result = chosen.generate(QUESTION, 64, streamer=streamer)
    width = encoded(QUESTION)["input_ids"].shape[1]
    end = width + 64 if not chosen.settings.stop_at_eos else width + int(result.tokens[0])
    assert streamer.chunks[0].shape == (1, width)
    assert torch.equal(streamer.text, result.sequences[:, :end])
    assert streamer.ended == 1
    assert len(streamer.drafts) == result.forwards
    assert torch.equal(result.sequences, chosen.generate(QUESTION, 64).sequences)


def test_text_comes_when_its_block_is_done_and_drafts_between():
    streamer = Drafts()
    result = sampler().generate(QUESTION, 64, streamer=streamer)
    assert [chunk.shape[1] for chunk in streamer.chunks[1:-1]] == [8] * (len(streamer.chunks) - 2)
    assert len(streamer.chunks) > 3
    sent = [at for at, _ in streamer.drafts]
    assert sent[0] == streamer.chunks[0].shape[1]
    assert sent == sorted(sent)
    assert len(set(sent)) == len(streamer.chunks) - 1
    # A draft holds no mask, and the last one of a block is the block.
    assert all(model().facts.mask_token_id not in draft.tolist()[0] for _, draft in streamer.drafts)
    for at in sorted(set(sent))[:-1]:
        last = [draft for sent, draft in streamer.drafts if sent == at][-1]
        assert torch.equal(last, result.sequences[:, at : at + 8])


def test_streamers_of_transformers_work_inside_generate(capsys):
    tokenizer = model().tokenizer
    text = sampler().generate(QUESTION, 64).texts[0]
    generate(
        sampler(), QUESTION, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    )
    assert capsys.readouterr().out.strip() == text
    diffusion = TextDiffusionStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generate(sampler(), QUESTION, streamer=diffusion)
    assert capsys.readouterr().out.count("\033[33m") == sampler().generate(QUESTION, 64).forwards
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=30)
    thread = Thread(target=generate, args=(sampler(), QUESTION), kwargs={"streamer": pieces})
    thread.start()
    assert "".join(pieces).strip() == text
    thread.join()


def test_a_streamer_that_takes_logits_gets_them():
    class Logits(Recorder):
        _takes_logits = True
        shapes = []

        def put_draft(self, logits):
            self.shapes.append(tuple(logits.shape))

    sampler().generate(QUESTION, 16, streamer=Logits())
    assert set(Logits.shapes) == {(1, 8, model().facts.vocab_size)}


def test_a_streamer_takes_one_prompt_and_always_ends():
    streamer = Recorder()
    with pytest.raises(ConfigurationError, match="one prompt; 2 were given"):
        sampler().generate([QUESTION, SHORT], 64, streamer=streamer)
    assert streamer.ended == 1

    class Breaks(Recorder):
        def put_draft(self, value):
            raise DecodingError("broken on purpose")

    breaking = Breaks()
    with pytest.raises(DecodingError, match="on purpose"):
        sampler().generate(QUESTION, 64, streamer=breaking)
    assert breaking.ended == 1


def test_a_streamer_ends_where_generate_is_refused():
    streamer = Recorder()
    with pytest.raises(ConfigurationError, match="num_beams"):
        generate(sampler(), QUESTION, streamer=streamer, num_beams=2)
    assert streamer.ended == 1


# Stopping criteria ---------------------------------------------------------------------------------


class After:
    """Stops rows whose new text holds a token; keeps what it was asked."""

    def __init__(self, token, width):
        self.token, self.width, self.asked = token, width, []

    def __call__(self, input_ids, scores, **kwargs):
        assert scores is None
        self.asked.append(input_ids.clone())
        return (input_ids[:, self.width :] == self.token).any(1)


def first_said_in(written, start, stop, but_not_in=()):
    """A token that the text has in [start, stop) for the first time."""
    return next(token for token in written[start:stop] if token not in [*written[:start], *but_not_in])


def test_criteria_end_rows_at_the_end_of_a_block():
    plain = sampler().generate([QUESTION, SHORT], 64)
    width = plain.sequences.shape[1] - 64
    written = plain.sequences[0, width:].tolist()
    token = first_said_in(written, 8, 16, but_not_in=plain.sequences[1, width:].tolist())
    criterion = After(token, width)
    result = sampler().generate([QUESTION, SHORT], 64, stopping_criteria=[criterion])
    # The row that is stopped ends with the block that holds the token; the other one goes on.
    assert result.sequences[0, width:].tolist() == written[:16] + [model().facts.pad_token_id] * 48
    assert torch.equal(result.sequences[1], plain.sequences[1])
    assert result.tokens.tolist() == [16, int(plain.tokens[1])]
    assert result.forward_of_position[0, 16:].eq(-1).all()
    assert result.row_forwards[0] < plain.row_forwards[0]
    # They are asked once a block, with prompts as wide as in the call.
    assert [ids.shape[1] - width for ids in criterion.asked][:2] == [8, 16]
    assert criterion.asked[0][0].tolist() == plain.sequences[0, : width + 8].tolist()


def test_a_stopped_row_that_stays_in_the_batch_writes_nothing_more(monkeypatch):
    # Compiled batches keep finished rows for their shape.
    plain = sampler().generate([QUESTION, SHORT], 64)
    width = plain.sequences.shape[1] - 64
    written = plain.sequences[0, width:].tolist()
    token = first_said_in(written, 8, 16, but_not_in=plain.sequences[1, width:].tolist())
    execution = type(model().execution)
    monkeypatch.setattr(
        execution, "batch_size", lambda self, left, batch, *, block_over: batch if left else 0
    )
    result = sampler().generate([QUESTION, SHORT], 64, stopping_criteria=[After(token, width)])
    assert result.sequences[0, width:].tolist() == written[:16] + [model().facts.pad_token_id] * 48
    assert torch.equal(result.sequences[1], plain.sequences[1])


def test_a_criterion_answers_in_batches_of_their_own():
    chosen = sampler(batch_size=1)
    width = encoded(QUESTION, SHORT)["input_ids"].shape[1]
    criterion = After(-1, width)
    chosen.generate([QUESTION, SHORT], 64, stopping_criteria=[criterion])
    widths = [ids.shape[1] - width for ids in criterion.asked]
    assert widths.count(8) == 2


def test_what_was_committed_behind_an_open_target_ends_with_the_row():
    chosen = sampler(schedule={"name": "multi_block", "block_length": 8}, cache="none")
    result = chosen.generate(QUESTION, 64, stopping_criteria=[lambda ids, scores: True])
    written = (result.forward_of_position[0] >= 0).tolist()
    assert written == sorted(written, reverse=True)
    assert 0 < sum(written) < sum((chosen.generate(QUESTION, 64).forward_of_position[0] >= 0).tolist())


def test_criteria_of_generate_are_asked():
    width = encoded(QUESTION)["input_ids"].shape[1]
    token = first_said_in(sampler().generate(QUESTION, 64).sequences[0, width:].tolist(), 8, 16)
    criteria = StoppingCriteriaList([After(token, width)])
    stopped = generate(sampler(), QUESTION, stopping_criteria=criteria, return_dict_in_generate=True)
    assert stopped.tokens.tolist() == [16]
    late = generate(sampler(), QUESTION, max_time=0.0, return_dict_in_generate=True)
    assert late.tokens.tolist() == [8]
    late = sampler().generate(QUESTION, 64, stopping_criteria=[MaxTimeCriteria(0.0)])
    assert late.tokens.tolist() == [8]


# The result ----------------------------------------------------------------------------------------


def test_the_result_behaves_as_a_model_output():
    result = sampler().generate(QUESTION, 64)
    assert isinstance(result, ModelOutput)
    names = [field.name for field in dataclasses.fields(result)]
    assert list(result) == list(result.keys()) == names
    assert result["sequences"] is result.sequences is result[0]
    sequences, forward_of_position, *_ = result.to_tuple()
    assert sequences is result.sequences
    assert forward_of_position is result["forward_of_position"]
    assert {**result}["texts"] == result.texts
    assert torch.utils._pytree.tree_map(lambda leaf: leaf, result).forwards == result.forwards


def test_the_result_is_still_a_dataclass():
    result = sampler().generate(QUESTION, 64)
    other = dataclasses.replace(result, forwards=3)
    assert (other.forwards, other["forwards"], result["forwards"]) == (3, 3, result.forwards)
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert list(copied) == list(result)
        assert torch.equal(copied["sequences"], result.sequences)
        assert copied.tokens_per_forward == result.tokens_per_forward
    assert (other.forced, other.remasks) == (int(result.row_forced.sum()), int(result.row_remasks.sum()))


# Adapters ------------------------------------------------------------------------------------------


def adapted(seed=0):
    """A plain bundled model with a LoRA adapter that changes what it writes, and the adapter's wrapper."""
    import peft

    loaded = load_model(compile="off")
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    return loaded, peft.get_peft_model(loaded.model, config)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapted()[1].save_pretrained(folder)
    return folder


def weights(loaded):
    return {name: m.weight for name, m in loaded.model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_an_adapter_put_on_a_loaded_model_is_decoded_with_under_every_cache():
    loaded, wrapped = adapted()
    prompts = [QUESTION, SHORT]

    def written(cache):
        return Sampler(loaded, cache=cache, schedule=BLOCKS).generate(prompts, 32, seed=0)

    apart = {name: written(name) for name in ("none", "prefix", "dual")}
    plain = Sampler(load_model(compile="off"), schedule=BLOCKS).generate(prompts, 32)
    assert (apart["none"].confidence - plain.confidence).abs().nan_to_num().max() > 1e-3
    chosen = Sampler(loaded, cache="dual", schedule=BLOCKS)
    ids = encoded(QUESTION)["input_ids"]
    decode = for_transformers(chosen)
    by_wrapper = wrapped.generate(input_ids=ids, custom_generate=decode, max_new_tokens=32)
    assert torch.equal(by_wrapper, chosen.generate(QUESTION, 32).sequences)
    wrapped.merge_and_unload()
    for name, result in apart.items():
        merged = written(name)
        assert torch.equal(merged.sequences, result.sequences)
        assert torch.allclose(merged.confidence, result.confidence, atol=1e-4, equal_nan=True)


def test_a_saved_adapter_is_merged_before_weights_are_packed(adapter):
    loaded, wrapped = adapted()
    wrapped.merge_and_unload()
    expected = weights(loaded)
    merged = weights(load_model(compile="off", adapter=adapter))
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    packed = load_model(adapter=str(adapter))
    assert torch.equal(
        Sampler(packed, cache="dual").generate(QUESTION, 32).sequences,
        Sampler(loaded, cache="dual").generate(QUESTION, 32).sequences,
    )


def published(adapter, folder, change=lambda tensors, config: None):
    """The same adapter as one trained on the published LLaDA code would have it."""
    from safetensors.torch import load_file, save_file

    names = {
        "model.layers": "model.transformer.blocks",
        "self_attn.q_proj": "q_proj",
        "self_attn.v_proj": "v_proj",
        "mlp.down_proj": "ff_out",
    }
    tensors = {}
    for ours, tensor in load_file(adapter / "adapter_model.safetensors").items():
        tensors[reduce(lambda name, pair: name.replace(*pair), names.items(), ours)] = tensor
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj", "ff_out"]
    change(tensors, config)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_may_have_the_published_names(adapter, tmp_path):
    theirs = weights(load_model(compile="off", adapter=published(adapter, tmp_path)))
    ours = weights(load_model(compile="off", adapter=adapter))
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, config: tensors.pop(next(iter(tensors))), "tensors are not those of this model"),
        (lambda tensors, config: config.update(r=8), "size mismatch"),
        (lambda tensors, config: config.update(rank_pattern={"ff_out": 2}), "rank_pattern"),
        (
            lambda tensors, config: tensors.update(
                {n.replace("blocks.3", "blocks.9"): tensors.pop(n) for n in list(tensors)}
            ),
            "tensors are not those",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, tmp_path, change, words):
    with pytest.raises(CheckpointError, match=words):
        load_model(adapter=published(adapter, tmp_path, change))


def test_an_adapter_that_cannot_be_merged_is_refused(adapter, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter folder '\./nowhere' does not exist"):
        load_model(adapter="./nowhere")
    with pytest.raises(ConfigurationError, match="quantised or split"):
        load_model(adapter=adapter, quantization="torchao-int8")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match="type LORA can be merged"):
        load_model(adapter=tmp_path)
