"""Refresh at intervals."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dllm_sampling import CachePolicy, DecodingState, ForwardPlan, NestedCachePolicy, Region


class IntervalRefresh(CachePolicy):
    """Another cache policy, refreshed besides every `interval` forwards.

    Every block starts with a refresh, from which the forwards are counted, so that a row's refreshes
    do not depend on its batch mates. Interval 1 recomputes everything: it decodes as `none` does.
    Needs the forwards since the last refresh, and another cache policy.
    Rule: everything on the first forward of a block and on every N-th after a refresh, else what the
    other policy plans; N = `interval`.
    Source: the reloading step of dKV-Cache (arXiv:2505.15781) and dInfer (arXiv:2510.08666).
    """

    name: ClassVar[str] = "interval"
    policy: NestedCachePolicy = Field(description="The cache policy between refreshes.")
    interval: int = Field(8, ge=1, description="Forwards from one refresh to the next.")

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        plan = self.policy.plan_forward(state, region)
        # Counted in forwards of the block, which are a row's own; refreshes may be another row's.
        due = state.block_forwards % self.interval == 0
        return ForwardPlan.full(state) if due else plan
