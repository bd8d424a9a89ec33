"""A sliding block."""

from __future__ import annotations

from typing import ClassVar

import torch
from dllm_sampling.strategies.shared.ragged import region_of_rows
from pydantic import Field
from torch import Tensor

from dllm_sampling import BlockSchedule, Decision, DecodingState, Observation, Region, Source


class Sliding(BlockSchedule):
    """Work from each row's leftmost open target on; the end moves by one with every commit.

    So `block_length` open targets are always offered, until the canvas ends. There are no blocks and no
    refreshes by blocks: put `commit_refresh` or `interval` around a cache. Rows move on their own.
    """

    name: ClassVar[str] = "sliding"
    rule: ClassVar[str] = (
        "from the leftmost open target to the target number block_length + commits, or the last one; at\n"
        "most `longest` positions."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "DSB",
            "and its code; greedy without `longest`, constant with longest = block_length",
            arxiv="2602.05992",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("a region of each row", "counts carried by the read-back")
    block_length: int = Field(32, ge=1, description="Open targets that are offered.")
    longest: int | None = Field(None, ge=1, description="Most positions from the first to the last offered.")

    def plan_region(self, state: DecodingState) -> Region:
        carried = state.carried(self)
        ends = [end for (end,) in carried or self._ends(state).tolist()]
        begun = [min(at, end) for at, end in zip(state.next_open, ends, strict=True)]
        if self.longest is not None:
            ends = [min(end, start + self.longest) for start, end in zip(begun, ends, strict=True)]
        return region_of_rows(state, begun, ends, 0, carried is None)

    def _ends(self, state: DecodingState) -> Tensor:
        """Behind the target until which `block_length` are offered, `[batch, 1]`."""
        commits = (state.targets & ~state.masked).sum(1, keepdim=True)
        offered = state.targets & (state.targets.cumsum(1) <= commits + self.block_length)
        return torch.where(offered, state.columns + 1, 0).amax(1, keepdim=True)

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        state.carry(self, self._ends(state))
