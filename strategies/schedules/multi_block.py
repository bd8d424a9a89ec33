"""Several blocks at once."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from dllm_sampling.strategies.schedules.ragged import region_of_rows
from pydantic import Field

from dllm_sampling import BlockSchedule, Decision, DecodingState, ModelFacts, Observation, Region


class MultiBlock(BlockSchedule):
    """Open the next block when a share of the last one is done, and work on all open ones together.

    At most one is opened a forward. Where nothing passes a rule the engine commits in the leftmost
    unfinished block, so a block that has just been opened is never forced. Nothing is refreshed after
    the first forward but by `interval` or `windowed`. Rows move on their own.
    Needs a region of each row with blocks of its own, and its last block carried by the read-back.
    Rule: append a block when the committed share of the last one >= `add`.
    Source: D2F (arXiv:2508.09192) and d3LLM (arXiv:2601.07568), whose code for Dream forces as here; D2F
    forces one commit in every block whose predecessor is 95 % done.
    """

    name: ClassVar[str] = "multi_block"
    block_length: int = Field(32, ge=1, description="Positions in a block.")
    add: float = Field(
        0.1, ge=0, le=1, description="Committed share of the last block at which one is added."
    )

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        state.memory(self)["last"] = torch.zeros_like(state.row_steps)

    def plan_region(self, state: DecodingState) -> Region:
        limit, size = state.end_of_targets, self.block_length
        carried = state.carried(self)
        last = [n for (n,) in carried or [[0]] * state.batch]
        begun = [min(at, limit) for at in state.next_open]
        ends = [min(state.first_target + (n + 1) * size, limit) for n in last]
        region = region_of_rows(state, begun, ends, 0, carried is None)
        blocks = (region.positions - state.first_target).div(size, rounding_mode="floor")
        return replace(region, blocks=blocks)

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        memory, size = state.memory(self), self.block_length
        blocks = -(-(state.end_of_targets - state.first_target) // size)
        start = (state.first_target + memory["last"] * size)[:, None]
        inside = (state.columns >= start) & (state.columns < start + size) & state.targets
        done = (inside & ~state.masked).sum(1)
        opens = (done >= self.add * inside.sum(1)) & (memory["last"] + 1 < blocks)
        memory["last"] = memory["last"] + opens
        state.carry(self, memory["last"][:, None])
