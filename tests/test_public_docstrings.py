"""The public names are documented in the Google convention, whole: mkdocstrings reads nothing else."""

from __future__ import annotations

import dataclasses
import inspect
import re

import griffe
import pytest

import dllm_sampling
import dllm_sampling.testing
from dllm_sampling.policies.named import Named

# Nobody else constructs them.
MADE_BY_THE_ENGINE = {"DecodingState", "Run"}
HOME_MADE = re.compile(r"^\w+(, \w+)*: \S|^Raises \w+|^Returns ", re.MULTILINE)


def documented(thing, heading):
    """The names under a heading of a docstring."""
    sections = griffe.Docstring(inspect.getdoc(thing) or "").parse("google", warnings=False)
    return [entry.name for section in sections if section.kind.value == heading for entry in section.value]


def problems(name, thing):
    """What is missing from the docstring of a function, or of a class and its methods."""
    if (name.startswith("_") and name != "__init__") or not (inspect.getdoc(thing) or "").strip():
        return [f"{name}: no docstring"]
    found = [f"{name}: {m[0]!r} is no section" for m in HOME_MADE.finditer(inspect.getdoc(thing))]
    if not inspect.isclass(thing):
        parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
        if parameters != documented(thing, "parameters"):
            found.append(f"{name}: Args {documented(thing, 'parameters')} instead of {parameters}")
        return found
    if dataclasses.is_dataclass(thing):
        fields = [field.name for field in dataclasses.fields(thing)]
        if fields != [field for field in documented(thing, "attributes") if field in fields]:
            found.append(f"{name}: Attributes {documented(thing, 'attributes')} instead of {fields}")
    elif "__init__" in vars(thing) and name not in MADE_BY_THE_ENGINE:
        own = list(inspect.signature(thing.__init__).parameters)[1:]
        if own and not issubclass(thing, Exception) and own != documented(thing, "parameters"):
            found.append(f"{name}: Args {documented(thing, 'parameters')} instead of {own}")
    for key, value in vars(thing).items():
        method = getattr(value, "__func__", value)
        if inspect.isfunction(method) and method.__doc__ and not key.startswith(("_", "test_")):
            found += problems(f"{name}.{key}", method)
    return found


def public():
    for module in (dllm_sampling, dllm_sampling.testing):
        for name in module.__all__:
            thing = inspect.unwrap(getattr(module, name))
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(name, thing, id=name)


@pytest.mark.parametrize(("name", "thing"), list(public()))
def test_a_public_name_is_documented_in_sections(name, thing):
    assert problems(name, thing) == []


def test_every_field_of_the_settings_is_described():
    for cls in (dllm_sampling.Sampling, dllm_sampling.SamplerSettings, dllm_sampling.RunConfig):
        for field, info in cls.model_fields.items():
            assert info.description, (cls.__name__, field)
            assert "\n" not in info.description
    assert not issubclass(dllm_sampling.Sampling, Named)


def home_made(scores, k):
    """The best of them.

    scores: what counts. k: how many.
    Raises ConfigurationError where there are none.
    """


def half(scores, k):
    """The best of them.

    Args:
        scores: What counts.
    """


@pytest.mark.parametrize(("function", "count"), [(home_made, 3), (half, 1)])
def test_what_is_not_whole_is_noticed(function, count):
    assert len(problems("it", function)) == count
