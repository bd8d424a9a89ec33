"""All targets at once."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import BlockSchedule, DecodingState, Region, Source


class WholeCanvas(BlockSchedule):
    """Work on all targets at once: one block."""

    name: ClassVar[str] = "whole_canvas"
    rule: ClassVar[str] = "[first target, end of targets)."
    sources: ClassVar[tuple[Source, ...]] = (Source("Dream", arxiv="2508.15487"),)
    needs: ClassVar[tuple[str, ...]] = ("the span of the targets",)

    def plan_region(self, state: DecodingState) -> Region:
        starts = state.forward_index == 0
        return Region.between(state, state.first_target, state.length, starts_block=starts)

    def plan_blocks(self, state: DecodingState) -> Tensor:
        return state.targets.sum(1, keepdim=True)
