"""Prefix cache."""

from __future__ import annotations

from typing import ClassVar

from dllm_sampling import CachePolicy, DecodingState, ForwardPlan, Region, Source


class PrefixCache(CachePolicy):
    """Refresh at the start of a block; then recompute the block and everything after it.

    The keys and values of what lies before the block are reused.
    """

    name: ClassVar[str] = "prefix"
    rule: ClassVar[str] = "everything on the first forward of a block [s, e), then [s, end of the canvas)."
    sources: ClassVar[tuple[Source, ...]] = (Source("Fast-dLLM", "section 3.2", arxiv="2505.22618"),)
    needs: ClassVar[tuple[str, ...]] = ("stored keys and values",)

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        if region.starts_block:
            return ForwardPlan.full(state)
        return ForwardPlan.window(state, region, left=0, right=None)
