"""The progress guard: whatever a policy decides, a run ends."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_sampling.errors import PluginError
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation


class Guarded(NamedTuple):
    """What is left of a decision.

    commit, forced: bool `[batch, region]`; the forced commits are among `commit`. remask: the same, or None.
    idle_left: `[batch]`, idle steps that each row still has. stuck: bool `[batch]`, rows in which nothing
    could be committed although it had to be.
    """

    commit: Tensor
    remask: Tensor | None
    forced: Tensor
    idle_left: Tensor
    stuck: Tensor


def guarded(observation: Observation, commit: Tensor, remask: Tensor | None, idle_left: Tensor) -> Guarded:
    """Let a decision pass as far as the rows can afford it.

    A step whose net commits n fall short of 1 costs the row 1 - n idle steps. A row without that many left
    has its remasks dropped and, if it still commits nothing, its most confident eligible position of the
    leftmost unfinished block is committed. So no row takes more than idle_steps + targets steps.

    Args:
        observation: of the step; a row without an open target in it costs nothing.
        commit: bool `[batch, region]`, eligible positions to commit.
        remask: bool `[batch, region]`, committed positions to mask again; None for none.
        idle_left: `[batch]`, idle steps that each row has.
    """
    active = observation.masked.any(1)
    gain = commit.sum(1)
    idle = gain == 0
    cost = 1 - gain if remask is None else 1 - gain + remask.sum(1)
    cost = cost.clamp_min(0) * active
    broke = cost > idle_left
    forced = most_confident(observation) & (broke & idle)[:, None]
    return Guarded(
        commit=commit | forced,
        remask=None if remask is None else remask & ~broke[:, None],
        forced=forced,
        idle_left=idle_left - cost.masked_fill(broke, 0),
        stuck=broke & idle & ~forced.any(1),
    )


def most_confident(observation: Observation) -> Tensor:
    """The single best position of each row: eligible before merely masked, lowest block first.

    Never one that is forbidden.
    """
    fresh = observation.masked & observation.fresh
    if observation.forbidden is not None:
        fresh = fresh & ~observation.forbidden
    candidates = torch.where(observation.eligible.any(1, keepdim=True), observation.eligible, fresh)
    none = torch.iinfo(torch.long).max
    leftmost = observation.blocks.masked_fill(~candidates, none).amin(1, keepdim=True)
    candidates = candidates & (observation.blocks == leftmost)
    scores = observation.log_confidence.masked_fill(~candidates, -torch.inf)
    # A candidate may score -inf itself; argmax of the mask breaks that tie in its favour.
    best = scores.amax(1, keepdim=True)
    first = ((scores == best) & candidates).long().argmax(1, keepdim=True)
    return torch.zeros_like(candidates).scatter(1, first, True) & candidates


def refuse_to_go_on_for_ever(state: DecodingState) -> None:
    """The guard ends every run; raise PluginError where what writes into the state has undone that."""
    if state.forward_index >= state.most_forwards:
        raise PluginError(
            f"{state.forward_index} forwards were made, and no more are ever needed: a policy of this "
            "run writes into the state's tensors, which is for the engine alone."
        )
