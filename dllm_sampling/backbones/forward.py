"""One forward: from a plan to what it shows of the region. The same for all families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.errors import DecodingError, PluginError
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.positions import Positions
from dllm_sampling.state.region import Region
from dllm_sampling.state.sampling import Sampling


class Forward(NamedTuple):
    """What one forward shows; how many positions each row computed; what compiling it took, if it did."""

    observation: Observation
    width: int
    compile_seconds: float


class _Job(NamedTuple):
    """One call of the model: the canvases of the batch, then their branches."""

    ids: Tensor
    position_ids: Tensor
    visible: Tensor | None
    positions: Positions
    writers: Tensor | None
    predictors: Tensor


@torch.no_grad()
def forward(
    model: Backbone,
    state: DecodingState,
    region: Region,
    plan: ForwardPlan,
    buffer: KVBuffer,
    sampling: Sampling,
    canvases: Mapping[str, Tensor] | None = None,
    tokens: Tensor | None = None,
) -> Forward:
    """Compute the planned positions and show what they say of the region.

    Args:
        model: what computes.
        state: the canvases.
        region: what is to be shown.
        plan: what is computed and seen.
        buffer: keys and values of the run.
        sampling: how candidates are drawn.
        canvases: tokens `[batch, length]` of further canvases, see the hook of that name.
        tokens: tokens `[batch, length]` to read instead of the state's.
    """
    planned, predictors, fresh = _computed(model.shift, state, region, plan.positions)
    read = [state.tokens if tokens is None else tokens, *(canvases or {}).values()]
    copies, everything = len(read), planned.covers(state.length)
    writers = _writers(state, region) if plan.store else None
    if plan.store:
        _note_written(state, plan, buffer, planned, writers, copies)
    visible = _visible(state, plan, buffer, planned)
    spent = model.execution.compile_seconds
    job = _Job(
        ids=torch.cat([planned.gather(each) for each in read]),
        position_ids=_repeated(planned.gather(state.position_ids), copies),
        visible=None if visible is None else _repeated(visible, copies),
        positions=planned.repeated(copies),
        writers=None if writers is None else _repeated(writers, copies),
        predictors=predictors if predictors.ndim == 1 else _repeated(predictors, copies),
    )
    logits = None
    if plan.store and not everything:
        logits = _compiled(model, job, state, buffer)
    if logits is None:
        logits = model.logits(
            job.ids,
            job.position_ids,
            None if job.visible is None else model.attention_mask(job.visible, job.positions),
            buffer.at(job.positions, job.writers) if plan.store else None,
            job.predictors,
        )
    if logits.device != state.tokens.device:  # layers spread over devices
        logits = logits.to(state.tokens.device)
    own, *others = logits.chunk(copies)
    branches = dict(zip(canvases or {}, others, strict=True))
    observation = Observation.of(state, region, sampling, own, fresh, branches)
    return Forward(observation, planned.width * copies, model.execution.compile_seconds - spent)


def _visible(state: DecodingState, plan: ForwardPlan, buffer: KVBuffer, planned: Positions) -> Tensor | None:
    """What may be attended to, `[batch, keys]`: a stored canvas, or what is computed; None for all of it."""
    visible = state.valid if plan.visible is None else plan.visible & state.valid
    hidden = state.has_padding or plan.visible is not None
    if plan.store and not buffer.complete:
        assert buffer.written is not None
        visible, hidden = visible & buffer.written, True
    if not plan.store and not planned.covers(state.length):
        # Without a buffer what is computed sees itself alone.
        visible, hidden = planned.gather(visible, fill=False), hidden or planned.span is None
    return visible if hidden else None


def _note_written(
    state: DecodingState,
    plan: ForwardPlan,
    buffer: KVBuffer,
    planned: Positions,
    writers: Tensor | None,
    copies: int,
) -> None:
    """Keep account of the slots that hold something; refuse a first plan that leaves some out."""
    everything = planned.covers(state.length)
    if not buffer.filled:
        if plan.visible is None and not everything:
            raise DecodingError(
                "the first forward of a run must compute every visible position: plan "
                "ForwardPlan.full(state)."
            )
        buffer.copies = copies
    elif copies != buffer.copies:
        raise PluginError(
            f"this step names {copies - 1} further canvases and the run began with {buffer.copies - 1}; "
            "where keys and values are stored they must stay the same."
        )
    if everything and writers is None:
        buffer.complete, buffer.written = True, None
    if buffer.complete:
        return
    if buffer.written is None:
        buffer.written = torch.zeros_like(state.valid)
    now = planned.mask(state.length)
    buffer.written = buffer.written | (now if writers is None else now & writers[:, None])


def _compiled(model: Backbone, job: _Job, state: DecodingState, buffer: KVBuffer) -> Tensor | None:
    """The same forward padded to a shape that others share; None where it cannot be compiled."""
    execution = model.execution
    batch, width = job.ids.shape
    kept = job.predictors.shape[-1]
    padded, rows = execution.width(width), execution.width(kept)
    if padded is None or rows is None:
        return None
    columns = job.positions.columns
    if job.writers is not None:
        columns = columns.masked_fill(~job.writers[:, None], -1)
    where = Positions(_padded(columns, padded, -1))
    visible = _repeated(state.valid, batch // state.batch) if job.visible is None else job.visible
    logits = execution.step(
        _padded(job.ids, padded, 0),
        _padded(job.position_ids, padded, 0),
        model.attention_mask(_padded(visible, buffer.slots, 0), where),
        buffer.at(where, None, seen=buffer.slots),
        _padded(job.predictors.expand(batch, -1), rows, 0),
    )
    return None if logits is None else logits[:, :kept]


def _computed(
    shift: int, state: DecodingState, region: Region, planned: Positions
) -> tuple[Positions, Tensor, Tensor | None]:
    """Positions to compute, the places among them that predict the region, and what of it is fresh."""
    wanted, given = region.positions.span, planned.span
    if wanted is not None and given is not None:
        first = wanted.start - shift
        # A text's first token has no position before it to be read off.
        behind_starts = shift == 0 or wanted.start > state.last_start
        if behind_starts and given.start <= wanted.start and wanted.stop <= given.stop:
            if first < given.start:
                planned = Positions.between(state, first, given.stop)
            offset = first - min(given.start, first)
            return planned, state.columns[offset : offset + region.width], None
    return _scattered(shift, state, region, planned)


def _scattered(
    shift: int, state: DecodingState, region: Region, planned: Positions
) -> tuple[Positions, Tensor, Tensor]:
    """The general case: regions or plans that differ from row to row."""
    wanted = region.positions.columns
    if shift:
        # The first token of a text is read off its own position, as the originals do.
        first = state.valid.long().argmax(1, keepdim=True)
        wanted = torch.where(wanted > first, wanted - shift, wanted)
    if planned.covers(state.length):
        return planned, wanted.clamp_min(0), wanted >= 0
    if shift:
        inside = planned.find(region.positions.columns, state.length) >= 0
        missing = inside & (planned.find(wanted, state.length) < 0)
        planned = planned.and_more(wanted.where(missing, -1))
    index = planned.find(wanted, state.length)
    return planned, index.clamp_min(0), index >= 0


def _writers(state: DecodingState, region: Region) -> Tensor | None:
    """The rows whose keys and values are written: those with an open target in the region."""
    if state.batch == 1:
        return None
    if region.span is not None and all(column < region.span.stop for column in state.next_open):
        return None
    return region.positions.gather(state.masked, fill=False).any(1)


def _repeated(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat(times, *[1] * (values.ndim - 1))


def _padded(values: Tensor, width: int, value: int) -> Tensor:
    """`values [batch, n]` with columns of `value` behind, up to `width`."""
    missing = width - values.shape[1]
    return torch.nn.functional.pad(values, (0, missing), value=value) if missing else values
