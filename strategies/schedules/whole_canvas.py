"""All targets at once."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import BlockSchedule, DecodingState, Region


class WholeCanvas(BlockSchedule):
    """Work on all targets at once: one block. Needs nothing but the span of the targets.

    Rule: [first target, end of targets).
    Source: Dream (arXiv:2508.15487).
    """

    name: ClassVar[str] = "whole_canvas"

    def plan_region(self, state: DecodingState) -> Region:
        starts = state.forward_index == 0
        return Region.between(state, state.first_target, state.length, starts_block=starts)

    def plan_blocks(self, state: DecodingState) -> Tensor:
        return state.targets.sum(1, keepdim=True)
