"""Sees who writes: around every call of a policy's methods, what belongs to the engine must stay as it is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from dllm_sampling.policies.class_checks import WRAP
from dllm_sampling.policies.kinds import Policy
from dllm_sampling.policies.run_spec import RunSpec, hook_names
from dllm_sampling.state.decision import Decision
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.positions import Positions
from dllm_sampling.state.region import Region
from dllm_sampling.state.result import GenerationResult
from dllm_sampling.state.rows import RowTensors

P = TypeVar("P", bound=Policy)
_STATE = "dllm_sampling.state."
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def watched(policy: P, found: list[str]) -> P:
    """An equal policy that notes in `found` whatever it, or a policy in its fields, writes into.

    Watched are the tensors of all that its methods are given; the memory of policies is their own.
    """
    held: dict[str, Any] = {}
    for field in type(policy).model_fields:
        value = getattr(policy, field)
        if isinstance(value, Policy):
            held[field] = watched(value, found)
        elif isinstance(value, (list, tuple)):
            held[field] = type(value)(watched(v, found) if isinstance(v, Policy) else v for v in value)
    cls = type(policy)
    space: dict[str, Any] = {
        "__module__": cls.__module__,
        "__annotations__": {"name": ClassVar[str]},
        "name": cls.name,
    }
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name.removeprefix(WRAP) in _ASKED:
            space[name] = _around(method, f"{cls.__name__}.{name}", found)
    again = policy.model_copy(update=held)
    made: Any = type(cls)
    object.__setattr__(again, "__class__", made(cls.__name__, (cls,), space))
    return again


_ASKED = {*hook_names(RunSpec), "transform", "score"}


def _around(method: Any, who: str, found: list[str]) -> Any:
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def wrapping(*args: Any, **named: Any) -> Generator[Any, Any, Any]:
            inner = method(*args, **named)
            with _unchanged(who, (args, named), found):
                next(inner)
            answer = yield
            with _unchanged(who, (args, named), found):
                try:
                    inner.send(answer)
                except StopIteration as stop:
                    return stop.value
            raise RuntimeError(f"{who} has more than one yield.")

        return wrapping

    @functools.wraps(method)
    def calling(*args: Any, **named: Any) -> Any:
        with _unchanged(who, (args, named), found):
            return method(*args, **named)

    return calling


@contextmanager
def _unchanged(who: str, given: Any, found: list[str]) -> Iterator[None]:
    for value in given[0]:
        if isinstance(value, Observation):  # computed when first asked for: now, so that they are seen too
            _ = value.tokens, value.log_confidence, value.margin, value.entropy
    before = [(path, tensor, tensor._version, tensor.clone()) for path, tensor in _tensors(given)]
    try:
        yield
    finally:  # a write is told also where what follows fails
        for path, tensor, version, value in before:
            # The engine fills and restores columns of the logits itself: there the values alone count.
            written = path != "observation.logits" and tensor._version != version
            if written or not torch.equal(_bits(tensor), _bits(value)):
                found.append(f"{who} wrote into {path}")


def _bits(values: Tensor) -> Tensor:
    """Floats as integers, so that NaN equals itself."""
    return (
        values.contiguous().view(_INTEGERS[values.element_size()]) if values.is_floating_point() else values
    )


def _tensors(given: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the engine's own objects among some arguments, once, with where it stands."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", given)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield path or "its argument", value
        elif isinstance(value, (tuple, list)):
            waiting += [(path, item) for item in value]
        elif type(value).__module__.startswith(_STATE):
            owner = path if isinstance(value, Positions) else _NAMES.get(type(value), type(value).__name__)
            waiting += [(f"{owner}.{name.lstrip('_')}", item) for name, item in vars(value).items()]
        elif isinstance(value, Mapping) and (not path or path == "observation.branches"):
            waiting += [(path, item) for item in value.values()]


_NAMES = {
    DecodingState: "state",
    RowTensors: "state",
    Observation: "observation",
    Region: "region",
    ForwardPlan: "plan",
    Decision: "decision",
    GenerationResult: "result",
}
