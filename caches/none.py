"""No cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from dllm_sampling import CachePolicy, DecodingState, ForwardPlan, Region, Source


class NoCache(CachePolicy):
    """Recompute every position every forward, and keep nothing: exact. The null cache policy."""

    name: ClassVar[str] = "none"
    rule: ClassVar[str] = "compute every position of the canvas in every forward."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("LLaDA", "which has no cache", arxiv="2502.09992"),
        Source("Dream", "which has none either", arxiv="2508.15487"),
    )
    needs: ClassVar[tuple[str, ...]] = ()
    exact_with: ClassVar[Mapping[str, object]] = {}

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        return ForwardPlan.full(state, store=False)
