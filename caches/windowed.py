"""A window around the region."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dllm_sampling import CachePolicy, DecodingState, ForwardPlan, Region, Source


class Windowed(CachePolicy):
    """Refresh at the start of a block; then recompute the region with some positions on both sides.

    `interval` and `warmup` around it add dInfer's other refreshes.
    """

    name: ClassVar[str] = "windowed"
    rule: ClassVar[str] = "everything on the first forward of a block [s, e), then [s - left, e + right)."
    sources: ClassVar[tuple[Source, ...]] = (Source("dInfer's vicinity refresh", arxiv="2510.08666"),)
    needs: ClassVar[tuple[str, ...]] = ("stored keys and values",)
    left: int = Field(16, ge=0, description="Positions before the region.")
    right: int | None = Field(16, ge=0, description="Positions after it; none for all there are.")

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        if region.starts_block:
            return ForwardPlan.full(state)
        return ForwardPlan.window(state, region, self.left, self.right)
