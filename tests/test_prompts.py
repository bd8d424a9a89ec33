"""What is taken as a prompt: every kind that is, and generated input that is none."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding

from dllm_sampling import ConfigurationError, PromptError, Sampler, load_model
from dllm_sampling.engine.prompts import canvases_to_generate, canvases_to_infill, encode, encode_one
from dllm_sampling.errors import DllmSamplingError
from tests.models import tiny

MODEL = load_model()
FACTS, TOKENIZER = MODEL.facts, MODEL.tokenizer
QUESTION = "Mia has 27 pens. Mia buys 5. How many pens?"
CHAT = [{"role": "user", "content": QUESTION}]
CHATS = [CHAT, [{"role": "user", "content": "Mia loses 8 pens."}]]
IDS = encode(QUESTION, None, FACTS, True)[0]
PAD = FACTS.pad_token_id


def kind(value):
    """How a case is named: some values are too long, or have no name of their own."""
    return type(value).__name__


def encoded(prompts, mask=None, *, chat_template=True):
    return encode(prompts, mask, FACTS, chat_template)


# What is taken --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompts",
    [
        QUESTION,
        (QUESTION,),
        CHAT,
        [CHAT],
        IDS,
        tuple(IDS),
        [np.array(IDS)],
        [np.int32(i) for i in IDS],
        [torch.tensor(i) for i in IDS],
        [torch.tensor(IDS, dtype=torch.int32)],
        torch.tensor([IDS]),
        np.array([IDS], dtype=np.uint16),
        {"input_ids": IDS},
        [{"input_ids": IDS}],
        {"input_ids": torch.tensor([IDS])},
        TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True),
        [TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True)],
        TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt"),
        TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="np"),
        dict(TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True)),
        [[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]],
        [[{"role": "user", "content": [{"type": "text", "text": t} for t in (QUESTION[:9], QUESTION[9:])]}]],
    ],
    ids=kind,
)
def test_the_same_prompt_in_every_form(prompts):
    assert encoded(prompts) == [IDS]


@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_what_a_tokenizer_returns_for_several_texts(tensors):
    TOKENIZER.padding_side = "left"
    answer = TOKENIZER.apply_chat_template(
        CHATS, add_generation_prompt=True, padding=True, return_tensors=tensors, return_dict=True
    )
    assert isinstance(answer, BatchEncoding)
    assert encoded(answer) == encoded(CHATS)
    assert encoded(dict(answer)) == encoded(CHATS)


def test_an_encoding_is_decoded_as_its_ids_are():
    sampler = Sampler(MODEL, cache="dual")
    answer = TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    results = [sampler.generate(given, gen_length=4) for given in (CHAT, answer, answer["input_ids"])]
    assert len({result.texts[0] for result in results}) == 1
    assert all(result.sequences.shape == results[0].sequences.shape for result in results)


def test_padding_counts_in_the_width_of_the_result():
    ids = torch.tensor([[PAD, PAD, 7, 8]])
    result = Sampler(MODEL).generate({"input_ids": ids, "attention_mask": ids != PAD}, gen_length=4)
    assert result.sequences.shape == (1, 8)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_mask_of_any_dtype(dtype):
    ids = torch.tensor([[PAD, PAD, 7, 8], [5, 6, 7, 8]])
    assert encoded(ids, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).to(dtype)) == [[7, 8], [5, 6, 7, 8]]


def test_one_id_that_begins_every_row_is_text():
    assert encoded(torch.tensor([[PAD, 7, 8], [PAD, 6, 7]])) == [[PAD, 7, 8], [PAD, 6, 7]]


# What is refused ------------------------------------------------------------------------------------

LONG = 10**5000
SELF = []
SELF.append(SELF)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts are None: a prompt is a text, a list of token ids, a chat"),
        (5, "prompts are 5"),
        (LONG, "prompts are <an integer of"),
        (b"How many?", "prompts are b'How many"),
        ([b"How many?"], "prompt 0 is b'How many"),
        ([bytearray(b"x")], "prompt 0 is bytearray"),
        ({QUESTION}, "prompts are {'Mia has"),
        (iter([QUESTION]), "prompts are <list_iterator"),
        ({"prompt": QUESTION}, "input_ids is missing"),
        (CHAT[0], "a chat is a list of messages"),
        ({"input_id": IDS}, "input_ids is missing"),
        ({"input_ids": IDS, "pixel_values": 1}, "unknown key beside input_ids 'pixel_values'"),
        ({"input_ids": None}, "prompts?.*list, got None"),
        ({"input_ids": QUESTION}, "got 'Mia has"),
        ({"input_ids": [IDS], "attention_mask": [[1]]}, "prompt 0 has .* tokens, its attention_mask 1"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 7]]}, "attention_mask holds 7"),
        ([None], "prompt 0 is None"),
        ([QUESTION, None], "prompt 1 is None"),
        ([QUESTION, 5], "prompt 0, token 0 is 'Mia has|list with text in it"),
        ([QUESTION, CHAT[0]], "prompt 0, message 0 is 'Mia has"),
        ([1, 2.5], "prompt 0, token 1 is 2.5: a token id is a whole number"),
        ([True, False], "prompt 0, token 0 is True"),
        ([[1, None]], "prompt 0, token 1 is None"),
        ([[1, LONG]], "prompt 0 holds ids outside"),
        ([[-1]], "prompt 0 holds ids outside"),
        ([[[1, 2]]], r"prompt 0, token 0 is \[1, 2\]"),
        (SELF, "prompt 0, token 0 is"),
        ([["a", "b"]], "prompt 0 is a list with text in it"),
        ([{1, 2}], "prompt 0 is {1, 2}"),
        (["x", "  \n"], "prompt 1 is empty"),
        (["x", "Mia \ud83d has"], r"prompt 1: character 4 is '\\ud83d', half of a character"),
        (torch.tensor(5), r"\[batch, prompt\] integers, not \[\]"),
        (torch.zeros(2, 2, 2, dtype=torch.long), r"integers, not \[2, 2, 2\]"),
        (torch.ones(1, 3, dtype=torch.bool), "torch.bool"),
        (torch.ones(1, 3, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(1, 3, dtype=torch.long, device="meta"), "integers, not"),
        (torch.zeros(0, 3, dtype=torch.long), "no prompts"),
        (torch.zeros(1, 0, dtype=torch.long), "prompt 0 is empty"),
        (torch.tensor([[1, 404]]), r"prompt 0 holds ids outside \[0, 404\)"),
        (torch.tensor([[7, -100]]), r"prompt 0 holds ids outside"),
        (torch.tensor([[PAD, PAD, 7], [5, 6, 7]]), "prompt 0 begins or ends with the padding id 1: give attention_mask"),
        (torch.tensor([[5, 6, 7], [5, 6, PAD]]), "prompt 1 begins or ends with the padding id"),
        (torch.tensor([[PAD, PAD, 7, 8]]), "prompt 0 begins or ends"),
        (np.array([[1.0, 2.0]]), "float64"),
        (np.array(["a"]), r"not \[1\] <U1"),
        ([np.array([1.5])], "float64"),
        ([torch.tensor([[1, 2]])], r"prompt 0: one row is a list or a tensor \[n\] of integers, not \[1, 2\]"),
    ],
    ids=kind,
)  # fmt: skip
def test_what_is_no_prompt_is_named(prompts, message):
    with pytest.raises(PromptError, match=message) as caught:
        encoded(prompts)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 2), r"attention_mask is \[1, 2\], the prompts are \[1, 3\]"),
        (torch.tensor([[0.5, 1, 1]]), "prompt 0.*not"),
        (torch.tensor([[1, 1, 0]]), "pad on the left"),
        (torch.tensor([[0, 0, 0]]), "prompt 0 is empty"),
        (torch.tensor([[0, 1, 2]]), "attention_mask holds 2"),
        (True, "attention_mask must be a tensor"),
        ("111", "attention_mask must be a tensor"),
        ([["a", "b", "c"]], "attention_mask 0 is 'a'"),
    ],
)
def test_masks_that_are_none(mask, message):
    with pytest.raises(PromptError, match=message):
        encoded(torch.tensor([[5, 6, 7]]), mask)


def test_a_mask_goes_with_a_tensor_and_is_given_once():
    with pytest.raises(PromptError, match="goes with a tensor"):
        encoded([[5, 6]], torch.ones(1, 2))
    with pytest.raises(PromptError, match="given twice"):
        encoded({"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}, torch.ones(1, 2))


# Messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user"}, "content must be text or a list of text parts, got none"),
        ({"role": "user", "content": None}, "got None"),
        ({"role": "user", "content": 5}, "got 5"),
        ({"role": "user", "content": b"x"}, "got b'x'"),
        ({"role": "user", "content": []}, r"got \[\]"),
        ({"role": "user", "content": ["x"]}, """part 0 is 'x': a part is {"type": "text", "text"""),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "part 0: a part of type 'image' cannot be read"),
        ({"role": "user", "content": [{"type": "text", "txt": "x"}]}, "unknown key 'txt'. Did you mean 'text'"),
        ({"role": "user", "content": [{"type": "text"}]}, "text must be text, got none"),
        ({"rol": "user", "content": "x"}, "unknown key 'rol'. Did you mean 'role'"),
        ({"role": "user", "contents": "x"}, "unknown key 'contents'. Did you mean 'content'"),
        ({"role": "user", "content": "x", 5: 1}, "unknown key 5"),
        ({"role": "", "content": "x"}, "role must be a text such as user, got ''"),
        ({"role": None, "content": "x"}, "role must be a text such as user, got None"),
        ({"role": "usr", "content": "x"}, "unknown role 'usr'. Did you mean 'user'"),
        ({"role": "User", "content": "x"}, "unknown role 'User'. Did you mean 'user'"),
        ({"role": "user", "content": "\udc00"}, "content: character 0 is"),
        ({"role": "user", "content": "x", "tool_calls": {}}, "tool_calls must be a list"),
        ({"role": "user", "content": "x", "tool_calls": [{"f": "\udc00"}]}, "tool_calls: character 0"),
        ({"content": "x"}, "role must be a text such as user, got none"),
        ("x", "message 1 is 'x': a chat is a list of messages"),
        (None, "message 1 is None"),
    ],
)  # fmt: skip
def test_a_message_that_no_template_can_show(message, text):
    with pytest.raises(PromptError, match=re.escape(text) if "{" in text else text) as caught:
        encoded([[{"role": "system", "content": "be brief"}, message]])
    assert "prompt 0, message 1" in str(caught.value)


def test_a_chat_without_content_is_empty():
    with pytest.raises(PromptError, match="prompt 0 is empty: no message has content"):
        encoded([[{"role": "user", "content": " "}]])
    with pytest.raises(PromptError, match="prompt 0 is empty"):
        encoded([[]])


def test_a_call_of_a_tool_needs_no_content():
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    chat = [*CHAT, {"role": "assistant", "content": None, "tool_calls": calls, "name": "x"}]
    assert encoded([chat])


@pytest.fixture
def template(monkeypatch):
    return lambda source: monkeypatch.setattr(TOKENIZER, "chat_template", source)


def test_a_template_that_reads_parts_is_given_parts(template):
    template("{% for m in messages %}{% for p in m['content'] %}<{{ p['text'] }}>{% endfor %}{% endfor %}")
    assert encoded(QUESTION) == encoded(f"<{QUESTION}>", chat_template=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('system first') }}", "prompt 0: chat template: system first"),
        ("{% for m in messages %}{{ m", "prompt 0: chat template:"),
        ("{{ messages[0].role }}", "prompt 0: the chat template does not show the content of the last message"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "does not come to an end"),
    ],
)  # fmt: skip
def test_a_template_that_refuses_or_drops_the_prompt(template, source, message):
    template(source)
    with pytest.raises(PromptError, match=message):
        encoded([QUESTION])


def test_a_role_that_the_template_names_is_none_of_ours(template):
    template("{% for m in messages %}{{ 'H' if m.role == 'User' else 'A' }}{{ m.content }}{% endfor %}")
    assert encoded([[{"role": "User", "content": QUESTION}]])


# Arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"gen_length": 8.0}, "gen_length must be a whole number, got 8.0"),
        ({"gen_length": True}, "gen_length must be a whole number, got True"),
        ({"gen_length": None}, "gen_length must be a whole number, got None"),
        ({"gen_length": 10**9}, "gen_length=1000000000 exceed the model's context of 512"),
        ({"gen_length": -LONG}, "gen_length must be at least 1, got <an integer of"),
        ({"gen_length": LONG}, "exceed the model's context"),
        ({"places": 3}, "places must be a list of whole numbers, one a prompt, got 3"),
        ({"places": "0"}, "places must be a list"),
        ({"places": [0.5]}, r"places\[0\] must be a whole number, got 0.5"),
        ({"places": [-1]}, r"places\[0\] must be at least 0, got -1"),
        ({"places": [2**70]}, r"places\[0\] must be at most"),
        ({"places": [0, 1]}, "2 places were given for 1 prompts"),
        ({"chat_template": None}, "chat_template must be True or False, got None"),
        ({"chat_template": "{{ messages }}"}, "chat_template must be True or False"),
        ({"streamer": "x"}, "streamer must have put and end, got 'x'"),
        ({"stopping_criteria": lambda *a: True}, "stopping_criteria must be a list"),
        ({"stopping_criteria": ["x"]}, "stopping_criteria must be a list"),
    ],
    ids=kind,
)
def test_arguments_of_a_wrong_type(arguments, message):
    with pytest.raises((ConfigurationError, PromptError), match=message):
        Sampler(tiny()).generate([[1, 2]], **{"gen_length": 4} | arguments)


def test_whole_numbers_of_numpy_are_whole_numbers():
    sampler = Sampler(tiny(), batch_size=np.int64(2), sampling={"temperature": 1.0})
    given = sampler.generate([[1, 2]], np.int64(4), seed=np.int32(3), places=np.array([5]))
    assert given.sequences.equal(sampler.generate([[1, 2]], 4, seed=3, places=[5]).sequences)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("llada", {}, "model must be what load_model returns, got 'llada'"),
        (None, {}, "model must be what load_model returns, got None"),
        (MODEL.model, {}, "model must be what load_model returns"),
        (MODEL, {"batch_size": True}, "batch_size must be a whole number, got True"),
        (MODEL, {"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        (MODEL, {"batch_size": "2"}, "batch_size must be a whole number, got '2'"),
        (MODEL, {"stop_at_eos": "no"}, "stop_at_eos must be True or False, got 'no'"),
        (MODEL, {"sampling": {"top_p": 0.5}}, "top_p=0.5 has no effect at temperature 0"),
        (MODEL, {"sampling": {"top_k": 5}}, "top_k=5 has no effect at temperature 0"),
    ],
    ids=kind,
)
def test_a_sampler_of_wrong_parts(model, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampler(model, **settings)


def test_a_nucleus_at_temperature_0_where_it_changes_confidences():
    whole, cut = (
        Sampler(tiny(), unmasking="fixed_k", sampling={"top_p": p, "confidence": "filtered"}).generate(
            [[1, 2]], 8
        )
        for p in (1.0, 0.3)
    )
    assert not whole.confidence.equal(cut.confidence)


MASK = tiny().facts.mask_token_id


@pytest.mark.parametrize(
    ("canvas", "targets", "message"),
    [
        ("text", None, "canvas must be a tensor .* got 'text'"),
        (["text"], None, "row 0 is 'text'"),
        (5, None, "got 5"),
        ([1, MASK], None, "row 0 is 1"),
        (torch.tensor([1, MASK]), None, r"got \[2\]"),
        ([[True, MASK]], None, "canvas 0, token 0 is True"),
        ([[1.0, MASK]], None, "canvas 0, token 0 is 1.0"),
        (torch.ones(1, 3), None, "integers, not"),
        ([], None, "no canvases"),
        ([[]], None, "canvas 0 is empty"),
        ([[1, 9999]], None, "canvas 0 holds ids outside"),
        ([[1, 2]], [[0, 5]], "target 1 is 5"),
        ([[1, 2]], [[0, 0.5]], "is 0.5, not 0, 1, True or False"),
        ([[1, 2]], [[True]], "canvas 0 has 2 tokens and 1 targets"),
        ([[1, 2]], [[True, True]] * 2, "targets has 2 rows, the canvas 1"),
        ([[1, 2]], "10", "targets must be a tensor"),
        ([[1, 2]], [["a", "b"]], "is 'a', not 0, 1, True or False"),
    ],
)
def test_canvases_that_are_none(canvas, targets, message):
    with pytest.raises(PromptError, match=message):
        Sampler(tiny()).infill(canvas, targets)


def test_canvases_in_every_form():
    facts = tiny().facts
    forms = [
        canvases_to_infill(canvas, targets, facts)
        for canvas, targets in (
            ([[1, MASK, 2]], None),
            (torch.tensor([[1, MASK, 2]]), None),
            (np.array([[1, MASK, 2]]), [[0, 1, 0]]),
            ([torch.tensor([1, MASK, 2])], [torch.tensor([False, True, False])]),
            ([(1, MASK, 2)], np.array([[False, True, False]])),
            ([[1, MASK, 2]], torch.tensor([[0.0, 1.0, 0.0]])),
        )
    ]
    for (canvas,) in forms:
        assert canvas.tokens.tolist() == [1, MASK, 2]
        assert canvas.targets.tolist() == [False, True, False]


def test_one_prompt_of_many_is_checked_by_its_place():
    assert encode_one(QUESTION, 3, FACTS, True, gen_length=8) == IDS
    with pytest.raises(PromptError, match=r"prompt 3 has \d+ tokens, which with gen_length=512 exceed"):
        encode_one(QUESTION, 3, FACTS, True, gen_length=512)


# Generated input ------------------------------------------------------------------------------------

texts = st.one_of(st.text(max_size=8), st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=4))
numbers = st.one_of(
    st.integers(-3, 500), st.integers(), st.booleans(), st.floats(), st.none(), st.builds(lambda: LONG),
    st.integers(0, 403).map(np.int64), st.floats(0, 9).map(np.float32), st.just(np.True_),
)  # fmt: skip
roles = st.one_of(st.sampled_from(["user", "assistant", "system", "tool", "usr", "critic"]), texts, numbers)
parts = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image", 5]), "text": texts | numbers}
)
contents = st.one_of(texts, numbers, st.lists(parts | texts, max_size=3), parts)
usual = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "critic"]),
        "content": st.text("abc \n?", min_size=1, max_size=6)
        | st.lists(
            st.fixed_dictionaries({"type": st.just("text"), "text": st.text("ab ", max_size=3)}),
            min_size=1,
            max_size=3,
        ),
    },
    optional={"name": st.just("Mia"), "reasoning_content": st.text("ab", max_size=3)},
)
messages = st.one_of(
    usual,
    usual,
    st.fixed_dictionaries({"role": roles, "content": contents}),
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "rol", "contents", "tool_calls", 3]),
        roles | contents,
        max_size=4,
    ),
)
arrays = st.builds(
    lambda shape, dtype, fill, make: make(shape, dtype, fill),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["int64", "int32", "uint8", "float32", "bool", "complex64"]),
    st.sampled_from([0, 1, 7, 200]),
    st.sampled_from([
        lambda shape, dtype, fill: torch.full(shape, fill).to(getattr(torch, dtype)),
        lambda shape, dtype, fill: np.full(shape, fill).astype(dtype),
    ]),
)  # fmt: skip
leaves = st.one_of(texts, numbers, st.binary(max_size=3), messages, arrays, st.sets(st.integers(0, 3)))
encodings = st.fixed_dictionaries(
    {
        "input_ids": st.lists(numbers, max_size=3)
        | st.lists(st.lists(st.integers(0, 403), max_size=3))
        | arrays
    },
    optional={"attention_mask": st.lists(st.integers(0, 2), max_size=3) | arrays, "labels": numbers},
)
structures = st.recursive(
    leaves | encodings,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=2).map(tuple) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=8,
)  # fmt: skip
plausible = st.one_of(
    st.lists(st.integers(-1, 404), max_size=5),
    st.lists(messages, max_size=3),
    st.lists(texts, max_size=3),
    encodings,
)


def check(prompts, mask, chat_template):
    """Ids in the vocabulary for every prompt, or an error that says in one line what is wrong with what."""
    try:
        rows = encode(prompts, mask, FACTS, chat_template)
    except DllmSamplingError as error:
        text = str(error)
        assert "\n" not in text
        named = "prompt" in text or "attention_mask" in text or "chat_template" in text
        assert named, text
        return None
    assert rows
    assert all(type(i) is int and 0 <= i < FACTS.vocab_size for ids in rows for i in ids)
    assert all(rows)
    return rows


@given(structures | plausible, st.none() | arrays, st.just(True) | st.booleans() | st.none())
def test_whatever_is_given_becomes_ids_or_a_named_error(prompts, mask, chat_template):
    check(prompts, mask, chat_template)


@given(st.lists(usual, min_size=1, max_size=3) | st.lists(messages, min_size=1, max_size=3))
def test_a_chat_is_shown_whole_or_refused(chat):
    rows = check([chat], None, True)
    if rows is not None:
        text = TOKENIZER.decode(rows[0])
        for message in chat:
            content = message["content"]
            parts_of_it = [content] if isinstance(content, str) else [part["text"] for part in content]
            assert "".join(parts_of_it).strip() in text


odd = st.one_of(numbers, texts, leaves, st.lists(numbers, max_size=2))
counts = st.integers(1, 6) | odd


def outcome(call):
    """Whether a call gives a result; an error must be one of ours, in one line."""
    try:
        call()
    except DllmSamplingError as error:
        message = str(error)
    else:
        return True
    assert message
    assert "\n" not in message
    return False


@given(st.fixed_dictionaries(
    {"prompts": plausible | st.just([[1, 2], [3]]), "gen_length": counts},
    optional={"seed": counts, "places": odd | st.just([4, 5]), "chat_template": st.booleans() | odd, "attention_mask": odd,
              "streamer": odd, "stopping_criteria": odd},
))  # fmt: skip
def test_whatever_generate_is_given_there_is_a_result_or_an_error_of_ours(arguments):
    outcome(lambda: Sampler(tiny()).generate(**arguments))


@given(
    st.lists(st.lists(st.integers(0, 191) | st.just(MASK), max_size=4), max_size=3) | odd | arrays,
    st.none() | st.lists(st.lists(st.booleans(), max_size=4), max_size=3) | odd | arrays,
    counts,
)
def test_whatever_infill_is_given_there_is_a_result_or_an_error_of_ours(canvas, targets, seed):
    outcome(lambda: Sampler(tiny()).infill(canvas, targets, seed=seed))


@given(st.one_of(odd, st.just(tiny())), st.dictionaries(
    st.sampled_from(["unmasking", "cache", "schedule", "transforms", "wrappers", "observers", "sampling", "stop_at_eos", "batch_size"]),
    odd | st.dictionaries(st.sampled_from(["name", "temperature", "top_p", "top_k", "confidence", "threshold"]), odd, max_size=2),
    max_size=2,
))  # fmt: skip
def test_whatever_a_sampler_is_made_of_it_is_made_or_an_error_of_ours(model, settings):
    outcome(lambda: Sampler(model, **settings))


@given(st.lists(st.lists(st.integers(0, 403), min_size=1, max_size=6), min_size=1, max_size=3))
def test_lists_of_ids_are_taken_as_they_are(rows):
    width = max(map(len, rows))
    padded = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    kept = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    forms = [rows, {"input_ids": rows}, {"input_ids": padded, "attention_mask": kept}]
    assert [encode(form, None, FACTS, True) for form in forms] == [rows] * 3
    assert encode(padded, kept, FACTS, True) == rows
    assert [canvas.before for canvas in canvases_to_generate(rows, 4, FACTS)] == [len(row) for row in rows]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1, max_size=4
    )
)
def test_the_text_of_a_message_is_that_of_its_parts(pieces):
    whole = "".join(pieces)
    given_parts = [{"type": "text", "text": piece} for piece in pieces]
    outcomes = [check([[{"role": "user", "content": c}]], None, True) for c in (whole, given_parts)]
    assert outcomes[0] == outcomes[1] == check([whole], None, True)


def test_a_prompt_that_is_json_is_text():
    assert check([json.dumps({"prompt": "x"})], None, True)
