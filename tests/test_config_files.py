"""Run files and overrides as the world brings them: honoured, or refused in one sentence, and never slowly.

A larger run, of 1,000 mutated files and as many overrides or any other number: `python -m tests.test_config_files 1000`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import ConfigurationError, DllmSamplingError, RunConfig, Sampling, registry
from dllm_sampling.inputs.config_files import DEEPEST, MOST_BYTES, MOST_VALUES, read_mapping
from tests.test_config import RUN, TOML

BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}]\n"
    for i in range(20)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 4)}]}}\n" for i in range(20)
)
SEVERAL = f"holds more than {MOST_VALUES} values"
DEEP = f"nested too deeply: at most {DEEPEST} levels"

UNREADABLE = {
    "twice.yaml": (
        "sampler:\n  cache: dual\n  cache: none\n",
        "the key 'cache' stands twice, in line 2 and in line 3",
    ),
    "flow.yaml": (
        "sampler: {cache: dual,\n  'cache': none}",
        "the key 'cache' stands twice, in line 1 and in line 2",
    ),
    "twice.json": (
        '{"sampler": {"cache": 1,\n\n "cache": 2}}',
        "'cache' stands twice, in line 1 and in line 3",
    ),
    "tabs.json": ('{\n\t"seed": 1,\n\t"seed": 2}', "the key 'seed' stands twice"),
    "twice.toml": ("seed = 1\nseed = 2", "not readable as TOML"),
    "bomb.yaml": (BOMB, SEVERAL),
    "merges.yaml": (MERGES, SEVERAL),
    "itself.yaml": ("a: &a\n  - *a", "an alias in line 1 holds itself"),
    "into_itself.yaml": ("a: &a {<<: *a}", "an alias in line 1 holds itself"),
    "wide.yaml": ("a: [" + "x," * MOST_VALUES, SEVERAL),
    "wide.json": (json.dumps({"a": [1] * MOST_VALUES}), SEVERAL),
    "large.yaml": ("#" * MOST_BYTES + "\n", f"has {MOST_BYTES + 1} bytes"),
    "deep.yaml": ("a: " + "[" * 5000, DEEP),
    "deep_blocks.yaml": ("- " * 5000, DEEP),
    "deep.json": ('{"a":' * 50 + "1" + "}" * 50, DEEP),
    "very_deep.json": ('{"a":' * 90000, DEEP),
    "deep.toml": ("a = " + "[" * 9000, DEEP),
    "dotted.toml": (".".join("a" * 90000) + " = 1", DEEP),
    "table.toml": ("[" + ".".join("a" * 90) + "]", DEEP),
    "tag.yaml": (
        "seed: !!python/object/apply:os.system ['true']",
        "line 1 holds a '!!python/object/apply:os.system'",
    ),
    "set.yaml": ("seed: !!set {a, b}", "line 1 holds a '!!set', which is no plain data"),
    "binary.yaml": ("\nseed: !!binary aGVsbG8=", "line 2 holds a '!!binary'"),
    "own_tag.yaml": ("seed: !mine 1", "line 1 holds a '!mine'"),
    "number_key.yaml": ("model:\n  1: 2", "a key must be text, not 1 in model"),
    "true_key.yaml": ("on: 2", "a key must be text, not True"),
    "list_key.yaml": ("[a, b]: 2", "unhashable key"),
    "date.toml": ("seed = 2001-01-01", "not datetime.date"),
    "infinite.yaml": (
        "sampler: {sampling: {temperature: .inf}}",
        "must be finite, not inf in sampler.sampling.temp",
    ),
    "infinite.json": ('{"seed": 1e999}', "must be finite, not inf in seed"),
    "nan.json": ('{"seed": NaN}', "NaN is no number of JSON"),
    "long.json": ('{"seed": ' + "9" * 5000 + "}", "not readable as JSON"),
    "nul.yaml": ("seed: \0", "line 1: holds a NUL character"),
    "two.yaml": ("a: 1\n---\nb: 1", "line 2, column 1: but found another document"),
    "text.yaml": ("hello", "holds str, not a mapping"),
    "wide.ini": ("", "unknown ending '.ini'"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_hold_no_settings(tmp_path, name):
    text, message = UNREADABLE[name]
    (tmp_path / name).write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigurationError) as raised:
        RunConfig.read(tmp_path / name)
    assert time.process_time() - started < 5
    told = str(raised.value)
    assert told.startswith(str(tmp_path / name))
    assert message in told
    assert len(told) < 600
    assert told.isprintable()


def test_what_is_no_file_of_text(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "utf16.yaml").write_bytes("seed: 1".encode("utf-16"))
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    for name, message in (
        ("folder.yaml", "is a folder, not a file"),
        ("zero.yaml", "is no regular file"),
        ("loop.toml", "Too many levels of symbolic links"),
        ("pipe.json", "is no regular file"),
        ("utf16.yaml", "is written in UTF-16; save it as UTF-8"),
        ("latin.yaml", "line 1: byte 0xe9 is no UTF-8"),
        ("nowhere.yaml", "No such file"),
        ("a\0b.yaml", "null byte"),
        ("x" * 5000 + ".yaml", "File name too long"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            RunConfig.read(tmp_path / name)


def test_what_files_may_hold(tmp_path):
    path = tmp_path / "run.YAML"
    path.write_text(
        "\ufeffmodel: {revision: 2024-01-02}\nsampler: {unmasking: {name: dream_schedule, eps: 1e-3}}\n"
    )
    run = RunConfig.read(path)
    assert run.model.revision == "2024-01-02"  # a date is text
    assert run.sampler.unmasking.eps == 0.001  # as JSON, TOML and YAML 1.2 write numbers
    path.write_text("a: &a {name: factor}\nb: {<<: *a, factor: 2}\nc: *a\n")
    assert read_mapping(path) == {
        "a": {"name": "factor"},
        "b": {"name": "factor", "factor": 2},
        "c": {"name": "factor"},
    }


WRONG_TYPES = [True, "1", b"1", float("nan"), float("inf"), 10**30]


@pytest.mark.parametrize("value", WRONG_TYPES)
def test_numbers_are_numbers_everywhere(value):
    """Every number of every policy, and of what stands around them."""
    tried = 0
    for kind in ("unmasking", "cache", "schedule", "transforms", "wrappers"):
        for name, cls in registry().classes(kind).items():
            for field, info in cls.model_fields.items():
                kinds = str(info.annotation)
                if "str" in kinds or not ("int" in kinds or "float" in kinds):
                    continue
                if value == 10**30 and "float" in kinds:
                    continue
                given = (value,) * 3 if "tuple" in kinds else value
                with pytest.raises(ConfigurationError, match=rf"{name}.*{field}"):
                    registry().build(_base(kind), {"name": name, field: given})
                tried += 1
    assert tried > 10
    for settings_ in (
        {"gen_length": value},
        {"seed": value},
        {"sampler": {"batch_size": value}},
        {"sampler": {"sampling": {"temperature": value if value != 10**30 else True}}},
        {"sampler": {"sampling": {"temperature": 1, "top_k": value}}},
        {"chat_template": value if value is not True else 1},
        {"model": {"tensor_parallel": "yes"}},
    ):
        with pytest.raises(ConfigurationError, match=r"Input should be|finite"):
            RunConfig.of(settings_)


def _base(kind):
    from dllm_sampling.policies.kinds import KINDS

    return next(base for base in KINDS if base.kind == kind)


def test_an_integer_is_fine_where_a_float_is_asked_for_and_not_the_reverse():
    assert Sampling(temperature=1).temperature == 1.0
    assert (
        RunConfig.of({"sampler": {"unmasking": {"name": "factor", "factor": 2}}}).sampler.unmasking.factor
        == 2.0
    )
    with pytest.raises(ConfigurationError, match=r"gen_length: Input should be a valid integer \(got 8.0\)"):
        RunConfig.of({"gen_length": 8.0})


CONTRADICTIONS = [
    ("unmasking", {"name": "hierarchy", "low_threshold": 0.9, "threshold": 0.5}, "low_threshold=0.9 must not be above threshold=0.5"),
    ("unmasking", {"name": "local_leap", "relaxed_threshold": 0.95}, "relaxed_threshold=0.95 must not be above threshold=0.9"),
    ("unmasking", {"name": "sched", "policy": "factor", "tau_high": 1.0}, "tau_low=2.5 must not be above tau_high=1.0"),
    ("unmasking", {"name": "sched", "policy": "factor", "tau_k": 2.0}, "tau_k=2.0 has no effect"),
    ("unmasking", {"name": "early_commit", "policy": "factor", "borders": [0.7, 0.3]}, r"borders=\(0.7, 0.3\)"),
    ("unmasking", {"name": "early_commit", "policy": "factor", "borders": [0.3, 1.3]}, "less than or equal to 1"),
    ("unmasking", {"name": "fixed_k", "k": 2, "steps": 3}, "k or steps, not both"),
    ("sampling", {"top_p": 0.9}, "top_p=0.9 has no effect at temperature 0"),
    ("sampling", {"top_k": 9}, "top_k=9 has no effect at temperature 0"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "message"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_or_have_no_effect(kind, value, message):
    with pytest.raises(ConfigurationError, match=message):
        RunConfig.of({"sampler": {kind: value}})


def test_settings_at_their_limits_are_taken():
    for kind, value in (
        ("unmasking", {"name": "hierarchy", "low_threshold": 0.5, "threshold": 0.5}),
        ("unmasking", {"name": "local_leap", "relaxed_threshold": 0.9}),
        (
            "unmasking",
            {"name": "local_leap", "relaxed_threshold": 0.5, "radius": 0},
        ),  # where a study varies the radius
        ("unmasking", {"name": "early_commit", "policy": "factor", "borders": [0, 1], "gaps": [2, 2, 0]}),
        ("schedule", {"name": "sliding", "longest": 32}),
        ("sampling", {"top_p": 0.9, "confidence": "filtered"}),
        ("sampling", {"top_k": 3, "temperature": 0.5}),
    ):
        RunConfig.of({"sampler": {kind: value}})


def test_an_answer_beyond_the_targets():
    from dllm_sampling import Sampler
    from tests.models import tiny

    early = {"name": "early_commit", "policy": "factor", "answer_start": 10, "answer_length": 4}
    Sampler(tiny(), unmasking=early, schedule="whole_canvas").generate([[1, 2]], gen_length=14)
    with pytest.raises(
        ConfigurationError, match=r"answer_start=10 and answer_length=4 end at 14, beyond the 13 pos"
    ):
        Sampler(tiny(), unmasking=early, schedule="whole_canvas").generate([[1, 2]], gen_length=13)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("temperature=0.7", "unknown setting 'temperature'. Did you mean 'sampling.temperature'?"),
        ("threshold=0.8", "unknown setting 'threshold'. Did you mean 'unmasking.threshold'?"),
        ("temperatur=0.7", "Did you mean 'sampling.temperature'?"),
        ("block_length=16", "Did you mean 'schedule.block_length'?"),
        ("source=x", "Did you mean 'model.source'?"),
        (
            "eps=1",
            "unknown setting 'eps': it is a parameter of unmasking policy 'dream_schedule', not chosen here.",
        ),
        ("unmasking={name: fixed_k, score: pc_sampler}", "`dllm-sampling frequencies`"),
        (
            "unmasking={name: fixed_k, score: {name: pc_sampler, frequencies: /no/file}}",
            "`dllm-sampling frequencies`",
        ),
        ("=", "written key=value"),
        ("a=", "override 'a=' has no value"),
        ("a..b=1", "written key=value"),
        ("unmasking=5", "an unmasking policy is a name, a mapping with a name, or an instance, not 5"),
        ("unmasking.threshold.x=1", "threshold: Input should be a valid number (got {'x': 1})"),
        ("transforms.0.x=1", "'sampler.transforms.0': the list has 0 entries"),
        ("transforms.5=factor", "'sampler.transforms.5': the list has 0 entries"),
        ("transforms.²=factor", "'sampler.transforms.²': the list has 0 entries"),
        ("sampler" + ".policy" * 60 + "=1", "has 61 parts"),
        ("seed=" + "1" * 9999, "not readable as YAML"),
        ("seed=0x" + "f" * 9999, "at most 64 bits (got <an integer of 39996 bits>)"),
        ("sampler.observers=[" + "[" * 60, "nested too deeply"),
    ],
)
def test_overrides_are_refused_with_a_hint(override, message):
    with pytest.raises(ConfigurationError) as raised:
        RunConfig.of(overrides=[override])
    assert message in str(raised.value)
    assert len(str(raised.value)) < 900


def test_hints_follow_the_chosen_policies(tmp_path):
    chosen = {
        "sampler": {"unmasking": {"name": "with_budget", "k": 2, "policy": "klass"}, "transforms": ["credit"]}
    }
    for key, place in (
        ("kl_threshold", "unmasking.policy.kl_threshold"),
        ("alpha", "transforms.0.alpha"),
        ("k", "unmasking.k"),
    ):
        with pytest.raises(ConfigurationError, match=f"Did you mean '{place}'"):
            RunConfig.of(chosen, overrides=[f"{key}=1"])
    for text, message in (
        ("unmasking: factor", "Did you mean 'sampler.unmasking'?"),
        ("sampler: {temperature: 1}", "Did you mean 'sampler.sampling.temperature'?"),
        ("samplers: []\nbaseline: x", "this is a study, not a run: `dllm-sampling compare` runs it"),
    ):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(ConfigurationError) as raised:
            RunConfig.read(tmp_path / "run.yaml")
        assert str(raised.value).startswith(f"{tmp_path}/run.yaml: ")
        assert message in str(raised.value)
    (tmp_path / "run.yaml").write_text("gen_length: 8")
    with pytest.raises(ConfigurationError, match=r"^unknown setting 'x'"):
        RunConfig.read(tmp_path / "run.yaml", overrides=["x=1"])


def test_a_wrong_name_of_what_a_policy_sees_is_an_error_with_the_nearest():
    import torch

    from dllm_sampling.testing import observe

    state, observation = observe(torch.randn(1, 3, 5))
    with pytest.raises(
        AttributeError, match=r"Observation has no 'confidence'\. Did you mean 'log_confidence'?"
    ):
        _ = observation.confidence
    with pytest.raises(AttributeError, match=r"DecodingState has no 'mask'\. Did you mean 'masked'"):
        _ = state.mask
    assert not hasattr(observation, "_private")


# Mutations ----------------------------------------------------------------------------------------

VALUES = [
    None, True, -1, 0, 10**30, 0.5, float("nan"), "", "x", "0.5", "\x1b[2J", [], {}, [[]], {"name": "factor"},
    {"name": 3}, {"a": {"b": 1}}, ["dual"], "interval", "\ud800", "x" * 1000, {1: 2},
]  # fmt: skip
KEYS = [
    "sampler",
    "unmasking",
    "name",
    "policy",
    "threshold",
    "samplers",
    "temperature",
    "",
    "0",
    "x",
    1,
    None,
    "\n",
]
PIECES = [
    "[", "]", "{", "}", ":", ": ", "\n", "\t", "\0", "&a ", "*a", "<<: ", "!!set ", "? ", "- ", '"', "'", "#", "%", "|",
    "1e999", "\ufeff", "é", "null", "...", "---", "!!binary ", "=", "[[a]]", "0x", "\x1b",
]  # fmt: skip


def mutated_data(rng, data):
    """The data with one to three entries changed, added or left out."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, 3)):
        here = data
        while True:
            inner = [
                v
                for v in (here.values() if isinstance(here, dict) else here)
                if isinstance(v, (dict, list)) and v
            ]
            if not inner or rng.random() < 0.3:
                break
            here = rng.choice(inner)
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if keys and rng.random() < 0.2:
            del here[rng.choice(keys)]
        elif isinstance(here, dict):
            here[rng.choice(keys + KEYS if keys else KEYS)] = copy.deepcopy(rng.choice(VALUES))
        elif keys:
            here[rng.choice(keys)] = copy.deepcopy(rng.choice(VALUES))
    return data


def mutated_text(rng, text):
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(PIECES) + text[place + rng.choice([0, 0, 1, 5]) :]
    return text


def mutated_file(rng, folder):
    """A run file with something wrong, most probably."""
    kind = rng.choice(["yaml", "json", "toml"])
    path = folder / f"run.{kind}"
    text = TOML if kind == "toml" else (yaml.safe_dump if kind == "yaml" else json.dumps)(
        mutated_data(rng, RUN) if rng.random() < 0.6 else RUN
    )  # fmt: skip
    if kind == "toml" or rng.random() < 0.5:
        text = mutated_text(rng, text)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        data = rng.choice([text.encode("utf-16", "surrogatepass"), data + b"\xff", data[: len(data) // 2]])
    path.write_bytes(data)
    return path


def mutated_override(rng):
    if rng.random() < 0.3:
        path = rng.choice(
            ["gen_length", "seed", "sampling.temperature", "schedule.block_length", "unmasking.threshold"]
        )
        return f"{path}={rng.choice([1, 8, 0.5, 1.0, True, 'x'])}"
    path = ".".join(str(rng.choice([*KEYS, "schedule", "block_length"])) for _ in range(rng.randint(1, 4)))
    value = rng.choice(
        [str(rng.choice(VALUES)), json.dumps(rng.choice(VALUES[:15])), "".join(rng.choices(PIECES, k=3))]
    )
    return mutated_text(rng, f"{path}={value}") if rng.random() < 0.5 else f"{path}={value}"


def check(call):
    """Whether a call is refused: then in one printable sentence of bounded length, and soon either way."""
    started = time.process_time()
    try:
        call()
        refused = False
    except DllmSamplingError as error:
        refused, told = True, str(error)
        assert len(told) < 2000, told
        assert told.isprintable(), repr(told)
    assert time.process_time() - started < 5
    return refused


def check_seed(seed):
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        path = mutated_file(rng, Path(made))
        refused = check(lambda: RunConfig.read(path))
    return refused, check(
        lambda: RunConfig.of(RUN if rng.random() < 0.5 else None, overrides=[mutated_override(rng)])
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_any_file_and_override_is_honoured_or_refused(seed):
    check_seed(seed)


if __name__ == "__main__":
    found = [check_seed(10**10 + number) for number in range(int(sys.argv[1]))]
    print(
        len(found),
        "files, refused",
        sum(f for f, _ in found),
        "; overrides, refused",
        sum(o for _, o in found),
    )
