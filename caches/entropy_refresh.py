"""Refresh when uncertain tokens were written."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dllm_sampling import (
    CachePolicy,
    Decision,
    DecodingState,
    ForwardPlan,
    Observation,
    Positions,
    Region,
    Source,
)


class EntropyRefresh(CachePolicy):
    """Recompute the region's open targets and the latest tokens; refresh after an uncertain commit.

    Uncertain is a step whose committed tokens came from a distribution of more than `threshold` nats. A
    refresh by this rule is each row's own.
    """

    name: ClassVar[str] = "entropy_refresh"
    rule: ClassVar[str] = (
        "E = max entropy of what the last step committed; all if E > threshold, else the open targets\n"
        "of the region and the `recent` positions committed last."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "EntropyCache",
            "by its abstract and figure; no code is published. `recent` is a third party's report, "
            "`threshold` ours: the published one was not found",
            arxiv="2603.18489",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("entropies", "when each position was committed")
    threshold: float = Field(1.0, ge=0, description="Entropy above which everything is recomputed, in nats.")
    recent: int = Field(64, ge=0, description="Latest committed positions that are recomputed.")

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        uncertain = [bool(flag) for (flag,) in state.carried(self) or []]
        if region.starts_block or not uncertain:
            return ForwardPlan.full(state)
        chosen = region.positions.mask(state.length) & state.masked
        # Positions of one forward have one number: the lower ones go first, in any batch.
        order = state.committed_at * state.length + state.length - 1 - state.columns
        latest = order.topk(min(self.recent, state.length), 1)
        chosen = Positions(latest.indices).put(chosen, True, latest.values >= 0)
        width = min(state.length, region.width + self.recent)
        return ForwardPlan.of(chosen, width).with_rows_refreshed(state, uncertain)

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        worst = observation.entropy.masked_fill(~decision.commit, 0.0).amax(1, keepdim=True)
        state.carry(self, worst > self.threshold)
