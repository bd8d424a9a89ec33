"""Writing what a step has decided."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_sampling.engine.progress_guard import Guarded, guarded
from dllm_sampling.errors import DecodingError, DllmSamplingError, PluginError
from dllm_sampling.state.decision import Decision
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan


def commit(state: DecodingState, plan: ForwardPlan, observation: Observation, decision: Decision) -> Decision:
    """Apply a decision under the progress guard; return what was done.

    Only eligible positions are committed and only fresh committed targets are overwritten or remasked.
    """
    rows, facts = state.tensors, state.facts
    active = observation.masked.any(1)
    # A row that waits for others is not written, so that what it gets does not depend on them.
    changeable = observation.committed & active[:, None]
    wanted = decision.commit & observation.eligible
    remask = None if decision.remask is None else decision.remask & changeable
    passed = guarded(observation, wanted, remask, rows.idle_left)
    remask = passed.remask

    tokens = observation.tokens
    if decision.tokens is not None:
        tokens = decision.tokens.where(facts.allowed[decision.tokens], tokens)
    written, overwrite = passed.commit, decision.overwrite
    if overwrite is not None:
        overwrite = overwrite & changeable
        overwrite = overwrite if remask is None else overwrite & ~remask
        written = written | overwrite
    positions = observation.positions
    positions.write(rows.tokens, tokens, written)
    positions.write(rows.confidence, observation.log_confidence_of(tokens).exp().float(), written)
    positions.write(rows.committed_at, state.forward_index, written)
    positions.write(rows.masked, False, passed.commit)
    if remask is not None:
        positions.write(rows.tokens, facts.mask_token_id, remask)
        positions.write(rows.confidence, torch.nan, remask)
        positions.write(rows.committed_at, -1, remask)
        positions.write(rows.masked, True, remask)
        rows.remasks = rows.remasks + remask.sum(1)
    if decision.finish is not None:
        rows.ended = rows.ended | (decision.finish & active)
    _note_troubles(state, observation, active, passed)
    _count(state, plan, active, passed)
    return Decision(passed.commit, tokens, overwrite, remask, decision.finish)


def _count(state: DecodingState, plan: ForwardPlan, active: Tensor, passed: Guarded) -> None:
    rows = state.tensors
    rows.idle_left = passed.idle_left
    rows.forced = rows.forced + passed.forced.sum(1)
    rows.refreshes = rows.refreshes + (active & plan.refreshed(state))
    rows.steps = rows.steps + active
    rows.block_steps = rows.block_steps + active
    state.clock.tick()


def _note_troubles(state: DecodingState, observation: Observation, active: Tensor, passed: Guarded) -> None:
    """What would go wrong for ever, or has gone wrong in the model."""
    forward, names = state.forward_index, state.names
    read = observation.masked & observation.fresh
    broken = observation.log_confidence.isnan() & read
    state.trouble(broken.any(), lambda: _broken_logits(forward, observation, broken))
    state.trouble(passed.stuck.any(), lambda: _stuck(forward, state, observation, passed.stuck))
    state.trouble(
        ~active.any(),
        PluginError(
            f"the region of forward {forward} held no open target of any row, so nothing could be "
            f"committed: the block schedule {names.get('schedule')!r}, or a wrapper around its "
            "plan_region, must offer one."
        ),
    )


def _broken_logits(forward: int, observation: Observation, broken: Tensor) -> DllmSamplingError:
    """Says which of the two it is; looks at tensors, since the run is over."""
    row, place = broken.nonzero()[0].tolist()
    logits, column = observation.logits[row, place], int(observation.positions.columns[row, place])
    where = f"the logits of forward {forward}, row {observation.state.places[row]}, position {column}"
    if bool((logits == -torch.inf).all()):
        return DecodingError(
            f"{where} are all minus infinity, so no token can be chosen: a logits transform or a visible set "
            "leaves nothing."
        )
    return DecodingError(
        f"{where} hold NaN: the weights, the dtype, a visible set or a logits transform are broken."
    )


def _stuck(forward: int, state: DecodingState, observation: Observation, stuck: Tensor) -> DllmSamplingError:
    row = int(stuck.long().argmax())
    predicted = observation.masked[row] & observation.fresh[row]
    for who, forbidden in observation.forbidden_by:
        predicted = predicted & ~forbidden[row]
        if not bool(predicted.any()):
            return PluginError(
                f"{who} forbids every open position that forward {forward} predicted in row "
                f"{state.places[row]}, which must commit one now: a policy that forbids leaves one "
                "position at least, or gives the row idle steps."
            )
    return DecodingError(
        f"forward {forward} predicted none of the open targets of row {state.places[row]}: the cache policy "
        f"{state.names.get('cache')!r} did not recompute them."
    )
