"""Checks of what policies answer, by name: type, dtype and shape at once, values at the step's read-back.

Looking at a tensor's values makes the host wait for the device, so what is wrong with them is noted by
`DecodingState.trouble` and raised when the step is read back; until then such values are replaced by harmless
ones, so that nothing is read or written outside the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dllm_sampling.errors import PluginError, shown
from dllm_sampling.state.decision import Decision
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.positions import Positions
from dllm_sampling.state.region import Region

T = TypeVar("T")

# More steps than any run takes; idle steps are added up in 64 bits.
MOST_STEPS = 2**31 - 1


def check_blocks(who: str, answer: Any, given: Mapping[str, Any]) -> Tensor | None:
    """What `plan_blocks` answered."""
    state: DecodingState = given["state"]
    if answer is None:
        return None
    targets = _tensor(who, answer, torch.long, (state.batch, None), state)
    state.trouble((targets < 0).any(), PluginError(f"{who} answered a negative number of targets."))
    return targets


def check_region(who: str, answer: Any, given: Mapping[str, Any]) -> Region:
    """What `plan_region` answered."""
    state: DecodingState = given["state"]
    region = _instance(who, answer, Region)
    empty = f"{who} answered an empty region: it must hold a position at least."
    positions = _positions(f"{who}: positions", region.positions, empty, state)
    blocks = _tensor(f"{who}: blocks", region.blocks, torch.long, tuple(positions.columns.shape), state)
    _flag(f"{who}: starts_block", region.starts_block)
    if state.targets_in_block is not None:
        last = state.targets_in_block.shape[1] - 1
        known = blocks.clamp(0, last)
        wrong = ((known != blocks) & positions.inside).any()
        state.trouble(wrong, PluginError(f"{who}: blocks must be between 0 and {last}, as in plan_blocks."))
        blocks = known
    return replace(region, positions=positions, blocks=blocks)


def _positions(who: str, given: Any, empty: str, state: DecodingState) -> Positions:
    """Positions on the canvas, some at least; where they claim to be a slice they are that."""
    if not isinstance(given, Positions):
        raise PluginError(
            f"{who}: {shown(given)}; it must be Positions, such as Positions.between(state, start, stop), or "
            "a tensor [batch, width] of columns padded with -1."
        )
    columns = _tensor(who, given.columns, torch.long, (state.batch, None), state)
    if columns.shape[1] == 0:
        raise PluginError(empty)
    if given.span is None:
        return Positions(_distinct(who, columns, state))
    start, stop = _bounds(f"{who}: span", given.span, state.length)
    if columns.shape[1] != stop - start:
        raise PluginError(f"{who}: span {start}:{stop} has {stop - start} columns, not {columns.shape[1]}.")
    own = state.columns[start:stop]
    # Views of the canvas's columns are what they should be; anything else is compared.
    if columns.data_ptr() != own.data_ptr() or columns.stride() != (0, 1):
        wrong = PluginError(f"{who} are not the columns of span {start}:{stop}.")
        state.trouble((columns != own).any(), wrong)
    return given


def check_plan(who: str, answer: Any, given: Mapping[str, Any]) -> ForwardPlan:
    """What `plan_forward` answered."""
    state: DecodingState = given["state"]
    plan = _instance(who, answer, ForwardPlan)
    _flag(f"{who}: store", plan.store)
    if isinstance(plan.refresh, Tensor):
        _tensor(f"{who}: refresh", plan.refresh, torch.bool, (state.batch,), state)
    else:
        _flag(f"{who}: refresh", plan.refresh)
    if plan.visible is not None:
        _tensor(f"{who}: visible", plan.visible, torch.bool, tuple(state.tokens.shape), state)
    empty = f"{who} planned no position: a forward must compute one at least."
    positions = _positions(f"{who}: positions", plan.positions, empty, state)
    plan = plan if positions is plan.positions else replace(plan, positions=positions)
    return plan.within_sight()


def check_canvases(who: str, answer: Any, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `canvases` answered."""
    state: DecodingState = given["state"]
    if not isinstance(answer, Mapping) or not all(isinstance(name, str) for name in answer):
        raise PluginError(f"{who} answered {shown(answer)}; it must be a mapping of names to tokens.")
    found = {}
    for name, value in answer.items():
        tokens = _tensor(f"{who}: canvas {name!r}", value, torch.long, tuple(state.tokens.shape), state)
        found[name] = tokens.clamp(0, state.facts.vocab_size - 1)
        outside = PluginError(f"{who}: canvas {name!r} holds ids outside [0, {state.facts.vocab_size}).")
        state.trouble((found[name] != tokens).any(), outside)
    return found


def check_logits(who: str, answer: Any, given: Mapping[str, Any]) -> Tensor:
    """What `transform` answered, as float32."""
    observation: Observation = given["observation"]
    if not isinstance(answer, Tensor) or not answer.is_floating_point():
        raise PluginError(f"{who} answered {shown(answer)}; it must be floating-point logits.")
    logits = _tensor(who, answer, answer.dtype, tuple(observation.logits.shape), given["state"])
    return logits.float()


def check_allowed(who: str, answer: Any, given: Mapping[str, Any]) -> Tensor:
    """What `restrict` or `forbid` answered."""
    observation: Observation = given["observation"]
    return _tensor(who, answer, torch.bool, tuple(observation.masked.shape), given["state"])


def check_selected(who: str, answer: Any, given: Mapping[str, Any]) -> Tensor | Decision:
    """What `select` answered: a mask, or a Decision."""
    state: DecodingState = given["state"]
    shape = tuple(given["observation"].masked.shape)
    if isinstance(answer, Tensor):
        return _tensor(who, answer, torch.bool, shape, state)
    if not isinstance(answer, Decision):
        raise PluginError(f"{who} answered {shown(answer)}; it must be a bool tensor or a Decision.")
    _tensor(f"{who}: commit", answer.commit, torch.bool, shape, state)
    for name, dtype, wanted in (
        ("tokens", torch.long, shape),
        ("overwrite", torch.bool, shape),
        ("remask", torch.bool, shape),
        ("finish", torch.bool, (state.batch,)),
    ):
        value = getattr(answer, name)
        if value is not None:
            _tensor(f"{who}: {name}", value, dtype, wanted, state)
    if answer.tokens is None:
        return answer
    tokens = answer.tokens.clamp(0, state.facts.vocab_size - 1)
    written = answer.commit if answer.overwrite is None else answer.commit | answer.overwrite
    outside = PluginError(f"{who}: tokens hold ids outside [0, {state.facts.vocab_size}).")
    state.trouble(((tokens != answer.tokens) & written).any(), outside)
    return replace(answer, tokens=tokens)


def check_idle_steps(who: str, answer: Any, given: Mapping[str, Any]) -> int:
    """What `idle_steps` answered."""
    whole = isinstance(answer, int) and not isinstance(answer, bool)
    if not whole or not 0 <= answer <= MOST_STEPS:
        raise PluginError(f"{who} answered {answer!r}; it must be an integer from 0 to {MOST_STEPS}.")
    return int(answer)


CHECKS: dict[str, Callable[[str, Any, Mapping[str, Any]], Any]] = {
    "plan_blocks": check_blocks,
    "plan_region": check_region,
    "plan_forward": check_plan,
    "canvases": check_canvases,
    "transform": check_logits,
    "restrict": check_allowed,
    "forbid": check_allowed,
    "select": check_selected,
    "idle_steps": check_idle_steps,
}


def _instance(who: str, answer: Any, kind: type[T]) -> T:
    if not isinstance(answer, kind):
        raise PluginError(f"{who} answered {shown(answer)}; it must be a {kind.__name__}.")
    return answer


def _flag(who: str, value: object) -> None:
    if not isinstance(value, bool):
        raise PluginError(f"{who} is {shown(value)}; it must be True or False.")


def _tensor(
    who: str, value: Any, dtype: torch.dtype, shape: tuple[int | None, ...], state: DecodingState
) -> Tensor:
    """`value`, if it is a tensor of that dtype and shape (None: any size) where the canvas lies."""
    fits = (
        isinstance(value, Tensor)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True))
    )
    if not fits:
        wanted = ["any" if size is None else size for size in shape]
        listed = ", ".join(str(size) for size in wanted)
        raise PluginError(f"{who}: {shown(value)}; it must be {dtype} [{listed}].")
    if value.device != state.tokens.device:
        raise PluginError(f"{who}: a tensor on {value.device}; the canvas is on {state.tokens.device}.")
    found: Tensor = value
    return found


def _bounds(who: str, span: Any, length: int) -> tuple[int, int]:
    whole = isinstance(span, slice) and all(type(end) is int for end in (span.start, span.stop))
    if not whole or span.step not in (None, 1) or not 0 <= span.start < span.stop <= length:
        raise PluginError(f"{who}: {shown(span)}; it must be a slice of columns in [0, {length}).")
    return span.start, span.stop


def _distinct(who: str, positions: Tensor, state: DecodingState) -> Tensor:
    """Positions of a row, each once and on the canvas; -1 is none."""
    inside = positions.clamp(-1, state.length - 1)
    outside = PluginError(f"{who} must be columns in [0, {state.length}), or -1 for none.")
    state.trouble((inside != positions).any(), outside)
    # Padding is told apart by its place, so that only real positions can be equal.
    place = torch.arange(-positions.shape[1], 0, device=positions.device)
    ordered = torch.where(inside < 0, place, inside).sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any()
    state.trouble(twice, PluginError(f"{who} hold a column twice."))
    return inside
