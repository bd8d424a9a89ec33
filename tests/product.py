"""Samplers drawn from the whole product of what is installed, and what to decode with them.

Parameters are drawn from the fields' own types and bounds, so a policy that is added later is drawn too.
"""

from __future__ import annotations

import functools
import json
import tempfile
import types
import typing
from pathlib import Path

import annotated_types
import torch

from dllm_sampling import ConfigurationError, Sampler, load_model, registry
from dllm_sampling.plugins.nested import Nested
from tests.models import DATA

MOST = {int: 7, float: 4.0}  # above the lower bound, where a field has no upper one
WHOLE = {"steps": 24}  # forwards of a whole row: fewer than there are blocks are refused


@functools.cache
def model(family="llada"):
    """A tiny random checkpoint in float64, in which a difference between two batches is never rounding."""
    return load_model(DATA / family, dtype="float64", compile="off")


@functools.cache
def frequencies():
    path = Path(tempfile.mkdtemp()) / "frequencies.json"
    counts = {str(i): 1 + i * i % 17 for i in range(0, 180, 3)}
    path.write_text(json.dumps({"num_token": sum(counts.values()), "p_baseline_dict": counts}))
    return str(path)


def sampler_settings(rng):
    """Settings of a sampler: names and parameters of every kind of policy."""
    settings = {
        "unmasking": policy(rng, "unmasking"),
        "cache": policy(rng, "cache"),
        "schedule": policy(rng, "schedule"),
        "transforms": [policy(rng, "transforms") for _ in range(rng.choice([0, 0, 0, 1, 2]))],
        "wrappers": [policy(rng, "wrappers") for _ in range(rng.choice([0, 0, 1, 2]))],
        "stop_at_eos": rng.random() < 0.5,
    }
    if rng.random() < 0.3:
        settings["sampling"] = {"temperature": rng.choice([0.5, 1.0])}
        settings["sampling"] |= rng.choice([{}, {"top_p": 0.8}, {"top_k": 3}, {"confidence": "filtered"}])
    return settings


def sampler(rng, backbone, batch_size=1):
    """A sampler of drawn settings; what is refused at construction is drawn again."""
    while True:
        settings = sampler_settings(rng)
        try:
            return settings, Sampler(backbone, batch_size=batch_size, **settings)
        except ConfigurationError:
            continue


def policy(rng, kind, depth=0):
    """A policy of a kind as a mapping of its name and drawn parameters."""
    classes = registry().classes(kind)
    names = [name for name, cls in classes.items() if depth < 2 or not _holds_others(cls)]
    cls = classes[rng.choice(names)]
    drawn = {"name": cls.name}
    for name, field in cls.model_fields.items():
        if name in WHOLE and (field.default is not None or rng.random() < 0.5):
            drawn[name] = rng.randint(WHOLE[name] // 2, WHOLE[name])
        elif field.is_required() or rng.random() < 0.5 or name == "delimiters":  # by default text
            drawn[name] = _value(rng, field.annotation, field.metadata, depth)
    return drawn


def _holds_others(cls):
    """Whether it holds policies that may hold further ones."""
    held = {m.kind.kind for f in cls.model_fields.values() for m in f.metadata if isinstance(m, Nested)}
    return bool(held - {"score"}) or "Nested" in repr([f.annotation for f in cls.model_fields.values()])


def _value(rng, annotation, metadata, depth):  # noqa: PLR0911 - one line a type
    nested = [m for m in metadata if isinstance(m, Nested)]
    if nested:
        return policy(rng, nested[0].kind.kind, depth + 1)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _value(rng, args[0], [*args[1:], *metadata], depth)
    if origin is typing.Literal:
        return rng.choice(args)
    if origin in (typing.Union, types.UnionType):
        kinds = [a for a in args if a is not str]
        chosen = rng.choice(kinds)
        return None if chosen is type(None) else _value(rng, chosen, metadata, depth)
    if origin is tuple and args[-1] is Ellipsis:
        return [_value(rng, args[0], [], depth) for _ in range(rng.randint(1, 3))]
    if origin is tuple:
        return sorted((_value(rng, a, [], depth) for a in args), reverse=rng.random() < 0.5)
    if annotation is bool:
        return rng.random() < 0.5
    if annotation is Path:
        return frequencies()
    return _number(rng, annotation, metadata)


def _number(rng, kind, metadata):
    low, high = 0, None
    bounds = [part for bound in metadata for part in getattr(bound, "metadata", [bound])]  # those of a Field
    for bound in bounds:
        for part in bound if isinstance(bound, annotated_types.GroupedMetadata) else [bound]:
            if isinstance(part, (annotated_types.Ge, annotated_types.Gt)):
                low = getattr(part, "ge", getattr(part, "gt", None))
            if isinstance(part, (annotated_types.Le, annotated_types.Lt)):
                high = getattr(part, "le", getattr(part, "lt", None))
    high = low + MOST[kind] if high is None else high
    if kind is int:
        return rng.randint(low, high)
    return min(max(rng.uniform(low, high), low + 1e-3), high - 1e-3)


def prompts(rng, rows, longest=14):
    """Ragged prompts of token ids."""
    return [[rng.randrange(180) for _ in range(rng.randint(1, longest))] for _ in range(rows)]


def canvases(rng, rows, longest=24):
    """Ragged canvases and their targets, which may lie anywhere, given text behind them included."""
    texts = [[rng.randrange(180) for _ in range(rng.randint(2, longest))] for _ in range(rows)]
    share = rng.choice([0.2, 0.5, 0.9])
    targets = [[rng.random() < share for _ in text] for text in texts]
    for target in targets:
        target[rng.randrange(len(target))] = True
    return texts, targets


def decode(drawn, rng, backbone, batch_size):
    """Decode drawn input with drawn settings in batches of `batch_size`; `rng` gives the same input again."""
    made = Sampler(backbone, batch_size=batch_size, **drawn)
    rows, seed = rng.randint(2, 5), rng.randrange(1000)
    if rng.random() < 0.4:
        return made.infill(*canvases(rng, rows), seed=seed, stop_at_eos=rng.random() < 0.3)
    return made.generate(prompts(rng, rows), rng.randint(1, 20), seed=seed)


def differing_rows(alone, together):
    """Rows whose tokens, or whose own counts, are not those that they have alone."""
    names = ("sequences", "row_forwards", "row_forced", "row_remasks", "row_refreshes")
    same = torch.ones(len(alone.texts), dtype=torch.bool)
    for name in names:
        equal = getattr(alone, name) == getattr(together, name)
        same &= equal.all(1) if equal.ndim == 2 else equal
    return [i for i, equal in enumerate(same.tolist()) if not equal]
