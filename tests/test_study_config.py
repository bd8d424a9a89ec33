"""What a study file may hold: valid, or refused with one sentence; never a traceback, never a hang."""

from __future__ import annotations

import copy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import ConfigurationError
from dllm_sampling.study import StudyConfig
from tests.study_files import SMALL, finished

FULL = {
    **SMALL,
    "description": "Of all settings.",
    "models": [{"name": "bundled"}, {"name": "double", "dtype": "float64"}],
    "tasks": [
        "word_problems",
        {"name": "word_problems", "label": "short", "limit": 3, "gen_length": 8, "best_accuracy": 0.5},
    ],
    "seeds": [0, 1],
    "gen_length": 32,
    "published": [{"task": "short", "sampler": "one at a time", "accuracy": 0.5, "source": "here"}],
}


def point(values):
    return [{"name": "a {threshold} {k}", "unmasking": "confidence_threshold", "product": values}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": True}, "seeds"),
        ({"seeds": [True]}, "seeds.*valid integer"),
        ({"seeds": ["1"]}, "seeds.*valid integer"),
        ({"seeds": [1.0]}, "seeds.*valid integer"),
        ({"seeds": [2**70]}, "seeds"),
        ({"batch_size": True}, "batch_size.*valid integer"),
        ({"batch_size": "4"}, "batch_size.*valid integer"),
        ({"gen_length": True}, "gen_length.*valid integer"),
        ({"gen_length": 0}, "gen_length.*greater than or equal to 1"),
        ({"tasks": [{"name": "word_problems", "limit": True}]}, "task 'word_problems': limit.*valid integer"),
        ({"tasks": [{"name": "word_problems", "limt": 3}]}, "Did you mean 'limit'"),
        ({"tasks": [{"name": "word_problems", "best_accuracy": True}]}, "best_accuracy"),
        ({"tasks": [{"name": "word_problems", "best_accuracy": float("nan")}]}, "best_accuracy"),
        ({"tasks": [{"name": "word_problems", "label": 5}]}, "task 0 .* needs a name or a label"),
        ({"tasks": []}, "tasks"),
        ({"tasks": "word_problems"}, "tasks"),
        ({"tasks": [["word_problems"]]}, "tasks"),
        ({"models": {}}, "models"),
        ({"models": []}, "models"),
        ({"models": [{"name": ""}]}, "a model needs a name"),
        ({"models": [3]}, "models"),
        ({"samplers": "one at a time"}, "samplers"),
        ({"samplers": []}, "samplers"),
        ({"samplers": ["one at a time"]}, "samplers"),
        ({"samplers": [{"name": "a", "product": 5}]}, "product is a mapping"),
        ({"samplers": [{"name": "a", "product": {3: [1]}}]}, "product is a mapping"),
        ({"samplers": [{"name": "a", "product": {"unmasking.threshold": []}}]}, "product is a mapping"),
        ({"samplers": [{"name": "a", "product": {"seed": [1]}}]}, "unknown setting of a sampler 'seed'"),
        (
            {
                "samplers": point(
                    {"unmasking.threshold": list(range(10**4)), "batch_size": list(range(10**3))}
                )
            },
            "make 10,000,000 samplers; at most 10,000",
        ),
        (
            {"published": [{"task": "word_problems", "sampler": "one at a time", "accuracy": True}]},
            "accuracy",
        ),
        ({"name": None}, "name"),
        ({"description": 3}, "description"),
    ],
    ids=str,
)
def test_wrong_shapes_and_types_are_refused(change, message):
    with pytest.raises(ConfigurationError, match=f"(?s){message}"):
        StudyConfig.of({**SMALL, **change})


def test_a_large_product_is_refused_at_once():
    values = {f"unmasking.x{i}": list(range(100)) for i in range(8)}
    begun = time.perf_counter()
    with pytest.raises(ConfigurationError, match="make 10,000,000,000,000,000 samplers"):
        StudyConfig.of({**SMALL, "samplers": [{"name": "a", "product": values}]})
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize("name", [r"p $\frac{1}{2}$", "{threshold}", "a {b} {{c}}", "{", "}{"])
def test_braces_in_a_name_are_text_where_there_is_no_product(name):
    study = StudyConfig.of({**SMALL, "baseline": name, "samplers": [{"name": name}]})
    assert study.samplers[0].name == name


def test_data_nested_without_end_are_refused():
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    for change in (
        {"samplers": [{"name": "one at a time", "unmasking": deep}]},
        {"tasks": [deep]},
        {"models": [deep]},
    ):
        with pytest.raises(ConfigurationError):
            StudyConfig.of({**SMALL, **change})


def test_what_is_no_mapping_is_told():
    for data in ([], None, "x", 5):
        with pytest.raises(ConfigurationError, match="a study is a mapping of settings"):
            StudyConfig.of(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unmasking: fixed_k\n", "this is a run, not a study: `dllm-sampling generate --config` takes it"),
        ("model: {source: x}\nsampler: {cache: dual}\n", "this is a run, not a study"),
        ("gen_length: 64\nseed: 3\n", "this is a run, not a study"),
        ("", "name: Field required"),
        ("name: x\nsampler: []\nbaseline: a\ntasks: [word_problems]\n", "Did you mean 'samplers'"),
        ("- 1\n", "not a mapping of settings"),
    ],
)
def test_compare_says_what_it_was_given(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    code, out, err = finished("compare", path)
    assert (code, out) == (2, "")
    assert message in err
    assert str(path) in err
    assert err.count("\n") == 1


def test_compare_given_a_folder_a_missing_file_or_another_ending(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "plain").mkdir()
    (tmp_path / "study.txt").write_text("")
    for given_, message in (
        (tmp_path, f"is a folder, not a study: `dllm-sampling report {tmp_path}` reports it"),
        (tmp_path / "plain", "is a folder, not a study."),
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path / "study.txt", "unknown ending '.txt'"),
        ("x" * 5000, "unknown study"),
        ("x" * 5000 + ".yaml", "File name too long"),
    ):
        code, _, err = finished("compare", given_)
        assert code == 2
        assert message in err
        assert "Traceback" not in err


# Any change of a valid study --------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.just(10**30), st.floats(allow_nan=True), st.text(max_size=8),
    st.sampled_from(["dual", "fixed_k", "word_problems", "confidence_threshold", "file", "..", "~", "a {b}"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["name", "k", "product", "threshold", "label"]) | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(data, path=()):
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


PLACES = [path for path in places(FULL) if path]


@st.composite
def mutated(draw):
    data = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        here = data
        try:
            for key in path[:-1]:
                here = here[key]
            action = draw(st.sampled_from(["replace", "delete", "add", "twice"]))
            if action == "replace":
                here[path[-1]] = draw(VALUES)
            elif action == "delete":
                del here[path[-1]]
            elif action == "twice" and isinstance(here, list):
                here.append(copy.deepcopy(here[path[-1]]))
            elif isinstance(here, dict):
                here[draw(st.text(max_size=5))] = draw(VALUES)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return data


@settings(max_examples=80)
@given(mutated())
def test_any_change_of_a_study_is_valid_or_refused(data):
    try:
        study = StudyConfig.of(data)
    except ConfigurationError:
        return
    study.model_dump_json()
