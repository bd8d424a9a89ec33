"""Several blocks at once."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from dllm_sampling.strategies.shared.ragged import region_of_rows
from pydantic import Field

from dllm_sampling import BlockSchedule, Decision, DecodingState, ModelFacts, Observation, Region, Source


class MultiBlock(BlockSchedule):
    """Open the next block when a share of the last one is done, and work on all open ones together.

    At most one is opened a forward. Where nothing passes a rule the engine commits in the leftmost
    unfinished block, so a block that has just been opened is never forced. Nothing is refreshed after
    the first forward but by `interval` or `commit_refresh`. Rows move on their own.
    """

    name: ClassVar[str] = "multi_block"
    rule: ClassVar[str] = "append a block when the committed share of the last one >= `add`."
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "D2F",
            "which forces one commit in every block whose predecessor is 95 % done",
            arxiv="2508.09192",
        ),
        Source("d3LLM", "whose code for Dream forces as here", arxiv="2601.07568"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "a region of each row with blocks of its own",
        "its last block carried by the read-back",
    )
    block_length: int = Field(32, ge=1, description="Positions in a block.")
    add: float = Field(
        0.1, ge=0, le=1, description="Committed share of the last block at which one is added."
    )

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        state.memory(self)["last"] = torch.zeros_like(state.row_steps)

    def plan_region(self, state: DecodingState) -> Region:
        carried, size = state.carried(self), self.block_length
        last = [n for (n,) in carried or [[0]] * state.batch]
        begun = [min(at, end) for at, end in zip(state.next_open, state.row_ends, strict=True)]
        ends = [
            min(state.first_target + (n + 1) * size, end) for n, end in zip(last, state.row_ends, strict=True)
        ]
        region = region_of_rows(state, begun, ends, 0, carried is None)
        blocks = (region.positions.columns - state.first_target).div(size, rounding_mode="floor")
        return replace(region, blocks=blocks)

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        memory, size = state.memory(self), self.block_length
        place = state.columns - state.first_target
        final = (state.end_of_targets - 1 - state.first_target) // size
        start = (memory["last"] * size)[:, None]
        inside = (place >= start) & (place < start + size) & state.targets
        done = (inside & ~state.masked).sum(1)
        opened = memory["last"] + (done >= self.add * inside.sum(1))
        # A block without targets is passed over: the leftmost open target is always worked on.
        leftmost = torch.where(state.masked, place, state.length).amin(1)
        memory["last"] = opened.maximum(leftmost // size).minimum(final)
        state.carry(self, memory["last"][:, None])
