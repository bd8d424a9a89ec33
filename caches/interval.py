"""Refresh at intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from dllm_sampling import CachePolicy, DecodingState, ForwardPlan, NestedCachePolicy, Region, Source


class IntervalRefresh(CachePolicy):
    """Another cache policy, refreshed besides every `interval` forwards.

    Every block starts with a refresh, from which the forwards are counted, so that a row's refreshes do
    not depend on its batch mates. Interval 1 recomputes everything: it decodes as `none` does.
    """

    name: ClassVar[str] = "interval"
    rule: ClassVar[str] = (
        "everything on the first forward of a block and on every N-th after a refresh, else what the\n"
        "other policy plans; N = `interval`."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("the reloading step of dKV-Cache", arxiv="2505.15781"),
        Source("dInfer", arxiv="2510.08666"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the forwards since the last refresh", "another cache policy")
    exact_with: ClassVar[Mapping[str, object]] = {"interval": 1}
    policy: NestedCachePolicy = Field(description="The cache policy between refreshes.")
    interval: int = Field(8, ge=1, description="Forwards from one refresh to the next.")

    @property
    def exact(self) -> bool:
        return super().exact or self.policy.exact

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        plan = self.policy.plan_forward(state, region)
        # Counted in forwards of the block, which are a row's own; refreshes may be another row's.
        due = state.block_forwards % self.interval == 0
        return ForwardPlan.full(state) if due else plan
