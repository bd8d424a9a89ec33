"""A checkpoint folder means what transformers says it means, or is refused with file and key; nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dllm_sampling import CheckpointError, ConfigurationError, Sampler, load_model
from dllm_sampling.loading.checkpoint import load_tokenizer
from tests import folder_edits, folders
from tests.folders import CHATML, END, FAMILIES, START, dream, edit, llada

IDS = torch.arange(2, 12)[None]


def logits(folder):
    with torch.no_grad():
        return load_model(folder, compile="off").model(IDS).logits


def facts(folder):
    return load_model(folder, compile="off").facts


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch):
    """Neither a terminal nor the network answers."""

    def refuse(*args, **kwargs):
        raise AssertionError("a local folder asked somebody")

    monkeypatch.setattr("builtins.input", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# Code of a checkpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_folder_loads_and_nothing_of_it_runs(tmp_path, family):
    folder = FAMILIES[family](tmp_path)
    model = load_model(folder)
    assert type(model.model).__module__.startswith("transformers.models.")
    assert type(model.tokenizer).__module__.startswith("transformers.")
    assert model.tokenizer.name_or_path == str(folder)
    assert Sampler(model).generate(["hello"], gen_length=4).tokens.tolist()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "Tokenizer"},
        {"tokenizer_class": "Trainer"},
        {"auto_map": ["tokenization_{}.Tokenizer", "tokenization_{}.Tokenizer"]},
        {"auto_map": {"AutoTokenizer": ["someone/else--tokenization_{}.Tokenizer", None]}},
        {"vocab_file": "/etc/passwd", "tokenizer_file": "../other.json", "merges_file": "/etc/passwd"},
        {"init_inputs": ["/etc/passwd"], "name_or_path": "/etc", "trust_remote_code": True},
        {"fast_tokenizer_files": ["../../tokenizer.9.9.9.json"]},
    ],
)
def test_no_setting_of_a_tokenizer_leads_to_code_or_out_of_the_folder(tmp_path, family, changes):
    folder = FAMILIES[family](tmp_path)
    usual = load_tokenizer(folder)("One two.")["input_ids"]
    edit(folder, "tokenizer_config.json", **json.loads(json.dumps(changes).replace("{}", family)))
    assert load_tokenizer(folder)("One two.")["input_ids"] == usual
    assert not (tmp_path / "ran").exists()


def sharded(folder, names):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = sorted(tensors)[: len(tensors) // 2]
    parts = {"a.safetensors": half, "b.safetensors": [n for n in tensors if n not in half]}
    for file, its in parts.items():
        save_file({n: tensors[n] for n in its}, folder / file, metadata={"format": "pt"})
    weight_map = {n: names.get(file, file) for file, its in parts.items() for n in its}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../b.safetensors",
        "{}/b.safetensors",
        "x/b.safetensors",
        "b.bin",
        "..",
        "",
        5,
        None,
        ["b.safetensors"],
        "c.safetensors",
    ],
)
def test_a_shard_index_stays_inside_the_folder(tmp_path, name):
    folder = llada(tmp_path)
    usual = logits(folder)
    sharded(folder, {})
    assert logits(folder).equal(usual)
    shutil.copy(folder / "b.safetensors", tmp_path / "b.safetensors")
    (folder / "b.bin").write_bytes(pickle.dumps(folders._Runs(tmp_path / "ran")))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    given_name = name.replace("{}", str(tmp_path)) if isinstance(name, str) else name
    index["weight_map"] = {
        n: f if f == "a.safetensors" else given_name for n, f in index["weight_map"].items()
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json names"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_never_read(tmp_path):
    folder = llada(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file.*pytorch_model.bin is a pickle"):
        load_model(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}'
    )
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(folders._Runs(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        load_model(adapter=adapter)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_beside_the_weights_is_named(tmp_path):
    folder = llada(tmp_path)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(CheckpointError, match=r"adapter_config.json beside the weights"):
        load_model(folder)


# What a config means ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "theta"), [("llada", 1e4), ("dream", 1e6)])
def test_the_base_of_the_rotary_embedding_is_found_wherever_transformers_writes_it(tmp_path, family, theta):
    folder = FAMILIES[family](tmp_path)
    usual = logits(folder)
    for theta_of, same in ((theta, True), (7.0, False)):
        for changes in (
            {"rope_theta": theta_of},
            {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": theta_of}},
            {"rope_theta": ..., "rope_parameters": {"rope_theta": theta_of}},
            {
                "rope_theta": ...,
                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": theta_of}},
            },
            {"rope_theta": ..., "rope_scaling": {"type": "default", "rope_theta": theta_of}},
            {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta_of}},
            {"rope_theta": theta_of, "rope_scaling": {"rope_type": "default"}, "rope_parameters": {}},
        ):
            edit(folder, "config.json", **{"rope_parameters": ..., "rope_scaling": ..., **changes})
            assert logits(folder).equal(usual) == same, changes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "value",
    [
        {"rope_type": "linear", "factor": 4.0}, {"type": "dynamic", "factor": 2.0}, {"factor": 4.0}, "yarn", [1], 4.0,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, {"rope_type": None, "factor": 2},
        {"full_attention": {"rope_type": "llama3"}}, {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}},
        {"rope_type": "default", "rope_theta": -1.0}, {"rope_type": "default", "rope_theta": "1"},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
    ],
)  # fmt: skip
def test_rotary_scaling_is_refused_by_name(tmp_path, family, key, value):
    with pytest.raises(CheckpointError, match=f"{family}: config.json says {key}"):
        load_model(FAMILIES[family](tmp_path, {key: value}))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llada", {"clip_qkv": 0.1}), ("llada", {"block_type": "sequential"}), ("llada", {"block_type": ...}),
        ("llada", {"layer_norm_type": "gemma_rms"}), ("llada", {"activation_type": "swiglu"}), ("llada", {"rope": False}),
        ("llada", {"alibi": True}), ("llada", {"include_bias": True}), ("llada", {"scale_logits": True}),
        ("llada", {"block_group_size": 2}), ("llada", {"architectures": ["LLaDAMoEModelLM"]}), ("llada", {"num_experts": 8}),
        ("llada", {"weight_tying": "yes"}), ("llada", {"architectures": "LLaDAModelLM"}), ("llada", {"norm_after": True}),
        ("llada", {"layer_norm_with_affine": False}), ("llada", {"rms_norm_eps": "1e-5"}), ("llada", {"rms_norm_eps": 0}),
        ("llada", {"embedding_size": 403}), ("llada", {"n_layers": 10**9}), ("llada", {"d_model": 2**30}),
        ("llada", {"mlp_hidden_size": 2**30}), ("llada", {"mlp_ratio": "4", "mlp_hidden_size": None}),
        ("dream", {"use_sliding_window": True}), ("dream", {"hidden_act": "gelu"}), ("dream", {"head_dim": 4}),
        ("dream", {"layer_types": ["sliding_attention"]}), ("dream", {"layer_types": "full_attention"}),
        ("dream", {"architectures": ["Qwen2ForCausalLM"]}), ("dream", {"is_causal": True}), ("dream", {"mlp_bias": True}),
        ("dream", {"pruned_heads": {"0": [1]}}), ("dream", {"num_key_value_heads": 3}), ("dream", {"tie_word_embeddings": 1}),
        ("dream", {"rope_theta": ...}), ("dream", {"rope_theta": float("nan")}), ("dream", {"partial_rotary_factor": 0.5}),
    ],
)  # fmt: skip
def test_what_nothing_here_computes_is_refused_by_name(tmp_path, family, changes):
    with pytest.raises(CheckpointError, match=f"{family}: config.json.*{next(iter(changes))}"):
        load_model(FAMILIES[family](tmp_path, changes))


SIZES = {
    "llada": ["d_model", "n_heads", "n_layers", "n_kv_heads", "vocab_size", "max_sequence_length", "mlp_hidden_size"],
    "dream": [
        "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size",
        "max_position_embeddings", "intermediate_size",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in SIZES.items() for key in keys])
def test_sizes_that_are_none_are_refused_by_name(tmp_path, family, key):
    folder = FAMILIES[family](tmp_path)
    for value in (0, -1, "8", True, 8.0, [8], 10**20, float("nan")):
        edit(folder, "config.json", **{key: value})
        with pytest.raises(CheckpointError, match=f"config.json says {key}="):
            load_model(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_no_harm_is_taken(tmp_path, family):
    folder = FAMILIES[family](tmp_path)
    usual = logits(folder)
    edit(
        folder, "config.json", clip_qkv=None, _attn_implementation_autoset=True, _comment="mine", unsloth_version="2025.1",
        id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, dtype="bfloat16", problem_type=None, return_dict=True,
        chunk_size_feed_forward=0, is_encoder_decoder=False, num_experts=0, quantization_config=None, temperature=0.7,
        transformers_version="5.23.0", torch_dtype="float16", bos_token_id="none", pad_token_id=-1,
    )  # fmt: skip
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        "\ufeff" + text[:-1] + ', "model_type": "' + json.loads(text)["model_type"] + '"}'
    )
    assert logits(folder).equal(usual)


def test_what_transformers_itself_saves_of_a_dream_config_is_taken(tmp_path):
    folder = dream(tmp_path)
    usual = logits(folder)
    saved = load_model(folder).model.config.to_dict()
    saved |= {"model_type": "Dream", "architectures": ["DreamModel"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(saved))
    assert "rope_parameters" in saved
    assert "rope_theta" not in saved
    assert logits(folder).equal(usual)


def test_a_model_saved_by_transformers_is_told_for_what_it_is(tmp_path):
    load_model(dream(tmp_path)).model.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        CheckpointError, match=r"model_type='qwen2'.*known families: dream, llada.*whose family"
    ):
        load_model(tmp_path / "saved")
    for name in ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tmp_path / "dream" / name, tmp_path / "saved" / name)
    assert logits(tmp_path / "saved").equal(logits(tmp_path / "dream"))


def test_tied_embeddings_and_a_padded_vocabulary(tmp_path):
    def without_head(tensors):
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head")}

    model = load_model(dream(tmp_path, {"tie_word_embeddings": True}, weights=without_head))
    plain = load_model(tmp_path / "dream", compile="off")
    assert model.execution.packed
    with torch.no_grad():
        torch.testing.assert_close(model.model(IDS).logits, plain.model(IDS).logits, atol=1e-4, rtol=0)
    assert model.model.num_parameters() == plain.model.num_parameters()
    assert model.model.lm_head.weight is model.model.model.embed_tokens.weight
    assert not model.facts.allowed[261:].any()
    rows = load_model(llada(tmp_path, {"vocab_size": 300, "embedding_size": 404})).facts.allowed
    assert rows[299]
    assert not rows[300:].any()


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ({"quant_method": "quanto"}, lambda t: (t / t.abs().max() * 127).round().to(torch.int8)),
        (None, lambda t: (t / t.abs().max() * 127).round().to(torch.int8)),
        (None, lambda t: torch.zeros(t.numel() // 2, 1, dtype=torch.uint8)),
        (None, lambda t: t.to(torch.float8_e4m3fn)),
        ({"quant_method": "fp8"}, lambda t: t),
        ({"quant_method": "gptq", "bits": 4}, lambda t: torch.zeros(4, 4, dtype=torch.int32)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, lambda t: t),
        ("int8", lambda t: t),
    ],
)
def test_a_quantised_export_is_refused_as_one(tmp_path, named, change):
    def quantised(tensors):
        return {name: change(tensor) if "q_proj" in name else tensor for name, tensor in tensors.items()}

    folder = llada(tmp_path, {"quantization_config": named}, weights=quantised)
    with pytest.raises(
        CheckpointError, match="quantization_config.*quantised" if named else "as quantised exports do"
    ):
        load_model(folder)


# Special ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "size"), [("llada", 404), ("dream", 272)])
def test_special_ids_are_ids_or_refused_by_name(tmp_path, family, size):
    folder = FAMILIES[family](tmp_path)
    usual = facts(folder)
    for value in (-1, size, "1", True, 1.0, [1, size], [True], {"a": 1}, 10**30):
        for key in ("eos_token_id", "mask_token_id"):
            edit(folder, "config.json", **{key: value})
            with pytest.raises(CheckpointError, match=f"config.json says {key}="):
                load_model(folder)
            edit(folder, "config.json", **{key: usual.mask_token_id if key == "mask_token_id" else None})
        edit(folder, "generation_config.json", eos_token_id=value)
        with pytest.raises(CheckpointError, match=r"generation_config.json says eos_token_id="):
            load_model(folder)
        edit(folder, "generation_config.json", eos_token_id=None)
        edit(folder, "config.json", pad_token_id=value, bos_token_id=value)
        model = load_model(folder)
        assert 0 <= model.facts.pad_token_id < size
        assert model.facts.pad_token_id != model.facts.mask_token_id
        Sampler(model).generate([[5, 6, 7], [5]], gen_length=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_is_one_and_ends_nothing(tmp_path, family):
    folder = FAMILIES[family](tmp_path)
    mask, end = facts(folder).mask_token_id, facts(folder).eos_token_ids[0]
    for changes in (
        {"eos_token_id": mask},
        {"eos_token_id": [end, mask]},
        {"mask_token_id": end},
        {"mask_token_id": mask - 1},
    ):
        edit(folder, "config.json", **{"mask_token_id": mask, "eos_token_id": end, **changes})
        with pytest.raises(CheckpointError, match="mask_token_id"):
            load_model(folder)
    edit(folder, "config.json", mask_token_id=mask, eos_token_id=end)
    edit(folder, "generation_config.json", mask_token_id=mask + 1)
    with pytest.raises(CheckpointError, match=r"mask_token_id.*generation_config.json"):
        load_model(folder)
    edit(folder, "generation_config.json", mask_token_id=mask, eos_token_id=[end, 3])
    edit(folder, "config.json", mask_token_id=...)
    assert facts(folder).mask_token_id == mask  # the tokenizer's
    assert 3 in facts(folder).eos_token_ids
    edit(folder, "tokenizer_config.json", mask_token=...)
    assert facts(folder).mask_token_id == mask  # the generation config's
    edit(folder, "generation_config.json", mask_token_id=...)
    with pytest.raises(CheckpointError, match="names a mask_token_id"):
        load_model(folder)


PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
)
OPENED = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, END),
        (PARTS, END),
        (CHATML + "{{ '<|im_start|>2025-10-01' }}", END),
        ("{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}" + CHATML, END),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML, END),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML, END),
        ("<|beginoftext|>{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n<|im_end|>' }}{% endfor %}", END),
        ("{% for m in messages %}<|im_start|>{{ m.role }}<|beginoftext|>{{ m.content }}<|im_end|>{% endfor %}", END),
        # A token that only opens, or that stands behind the last message alone, ends nothing.
        (OPENED, None),
        (OPENED + "<|im_start|>2025-10-01", None),
        (OPENED + "<|im_end|>2025-10-01", None),
        ("{% if messages[0].role != 'system' %}<|im_start|>system Be good.{% endif %}" + OPENED, None),
        ("{% for m in messages if m.role == 'user' %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}", None),
        ("{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ ' ' ~ m.content ~ ' ### <|im_end|>' }}{% endfor %}", None),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_start|>{% else %}{{ m.content }}{% endif %}{% endfor %}", None),
        # What a template does is its affair: the checkpoint loads.
        ("{% if messages[-1]['role'] != 'user' %}{{ raise_exception('user last') }}{% endif %}" + CHATML, None),
        ([{"name": "chat", "template": CHATML}, {"name": "tool_use", "template": CHATML}], None),
        ([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "x"}], END),
        ("{% for m in messages %}{{ m", None),
        ("{{ ''.__class__ }}", None),
        ("", None),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}", None),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", None),
        ("{{ 'x' * 10**12 }}", None),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_is_known_or_not_counted(tmp_path, template, end):
    ends = facts(dream(tmp_path, tokenizer={"chat_template": template})).eos_token_ids
    assert ends == ((256,) if end is None else (256, end))
    assert START not in ends


# Damaged files --------------------------------------------------------------------------------------------

DAMAGE = [b"", b"x", b"{", b"[]", b"null", b"\xff\xfe\x00", b"\x00" * 9, b"[" * 100_000, b'{"a": ' * 100_000,
          b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("llada", "config.json"), ("llada", "tokenizer.json"), ("llada", "tokenizer_config.json"),
        ("llada", "generation_config.json"), ("llada", "special_tokens_map.json"), ("llada", "model.safetensors"),
        ("dream", "vocab.json"), ("dream", "added_tokens.json"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, family, file):
    folder = FAMILIES[family](tmp_path)
    for damage in DAMAGE:
        (folder / file).write_bytes(damage)
        with pytest.raises(CheckpointError, match=file) as error:
            load_model(folder)
        assert str(folder) in str(error.value)
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(CheckpointError, match=file):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("tokenizer.json", "{}"), ("tokenizer.json", '{"model": 5, "added_tokens": []}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": 7}'),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'), ("tokenizer_config.json", '{"model_max_length": "512"}'),
        ("tokenizer_config.json", '{"padding_side": 5}'), ("tokenizer_config.json", '{"eos_token": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'), ("tokenizer_config.json", '{"model_input_names": 1}'),
        ("tokenizer_config.json", '{"extra_special_tokens": 5}'),
    ],
)  # fmt: skip
def test_wrong_things_in_tokenizer_files_are_refused_with_the_file(tmp_path, file, data):
    folder = llada(tmp_path)
    (folder / file).write_text(data)
    with pytest.raises(CheckpointError, match=file):
        load_model(folder)


def test_missing_tokenizer_files_are_named(tmp_path):
    folder = llada(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"tokenizer_config.json, but neither tokenizer.json nor vocab.json"
    ):
        load_model(folder)
    (folder / "tokenizer_config.json").unlink()
    assert load_model(folder).tokenizer is None
    other = dream(tmp_path)
    (other / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"vocab.json, but no merges.txt"):
        load_model(other)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    folder = llada(tmp_path)
    (folder / "config.json").chmod(0)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        load_model(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {family: make(root) for family, make in FAMILIES.items()}


@given(family=st.sampled_from(sorted(FAMILIES)), edits=folder_edits.EDITS)
@example(family="llada", edits=[("set", "config.json", "n_layers", 10**9)])
@example(
    family="dream",
    edits=[("set", "tokenizer_config.json", "added_tokens_decoder", {"99999999999": {"content": "<z>"}})],
)
def test_any_folder_loads_or_is_refused(bases, tmp_path_factory, family, edits):
    folder = tmp_path_factory.mktemp("any") / family
    shutil.copytree(bases[family], folder)
    folder_edits.apply(folder, edits)
    model = reason = None
    try:
        model = load_model(folder)
    except CheckpointError as error:
        reason = str(error)
    assert not (folder.parent / "ran").exists()
    assert not (bases[family].parent / "ran").exists()
    if model is None:
        assert reason.startswith(f"{folder}: ")
    else:
        assert model.facts.mask_token_id not in model.facts.eos_token_ids
        Sampler(model).generate([[5, 6, 7], [5]], gen_length=2)
    shutil.rmtree(folder.parent)


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"source": 5}, {"source": True}, {"source": b"x"}, {"source": ["x"]}, {"dtype": 3}, {"dtype": "int8"}, {"dtype": None},
        {"dtype": torch.int8}, {"device": 5}, {"device": "warp"}, {"device": True}, {"device": None}, {"device": "meta"},
        {"device": -1}, {"device": "cuda:99"}, {"compile": True}, {"compile": False}, {"compile": None}, {"compile": []},
        {"quantization": 5}, {"quantization": ""}, {"quantization": {}}, {"quantization": {"quant_method": 5}},
        {"device_map": 5}, {"device_map": "autp"}, {"tensor_parallel": "yes"}, {"attn_implementation": 5}, {"revision": 5},
        {"adapter": 5},
    ],
)  # fmt: skip
def test_arguments_that_are_none_are_configuration_errors(arguments):
    with pytest.raises(
        ConfigurationError, match=next(iter(arguments)) if "source" not in arguments else "model="
    ):
        load_model(**arguments)


@pytest.mark.parametrize(
    "source", ["", " ", "./nowhere", "a\0b", "/" + "x" * 5000, "~nobody-here/x", "\ud800"]
)
def test_names_of_no_folder(source):
    with pytest.raises(CheckpointError, match=r"folder|hub"):
        load_model(source)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        load_model(llada(tmp_path) / "config.json")
