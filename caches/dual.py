"""Dual cache."""

from __future__ import annotations

from typing import ClassVar

from dllm_sampling import CachePolicy, DecodingState, ForwardPlan, Region, Source


class DualCache(CachePolicy):
    """Refresh at the start of a block; then recompute the block alone.

    The keys and values on both sides of the block are reused.
    """

    name: ClassVar[str] = "dual"
    rule: ClassVar[str] = "everything on the first forward of a block [s, e), then [s, e)."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Fast-dLLM", "section 3.2, DualCache", arxiv="2505.22618"),
    )
    needs: ClassVar[tuple[str, ...]] = ("stored keys and values",)

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        if region.starts_block:
            return ForwardPlan.full(state)
        return ForwardPlan.window(state, region, left=0, right=0)
