"""Refresh after so many commits."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from dllm_sampling import (
    CachePolicy,
    Decision,
    DecodingState,
    ForwardPlan,
    ModelFacts,
    NestedCachePolicy,
    Observation,
    Region,
    Source,
)


class CommitRefresh(CachePolicy):
    """Another cache policy, and a refresh of each row that has committed so much since its last one.

    A refresh by this rule is the row's own: only its entries change, the rows beside it compute what the
    other policy plans.
    """

    name: ClassVar[str] = "commit_refresh"
    rule: ClassVar[str] = (
        "everything in a row with at least `commits` commits since its last refresh, else what the\n"
        "other policy plans."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("DSB-cache", "after 32 and around `trailing`", arxiv="2602.05992"),
        Source("DCD", "the same", arxiv="2601.02076"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "counts carried by the read-back",
        "another cache policy",
    )
    policy: NestedCachePolicy = Field(description="The cache policy between refreshes.")
    commits: int = Field(32, ge=1, description="Commits from one refresh of a row to the next.")

    @property
    def exact(self) -> bool:
        return self.policy.exact

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        memory = state.memory(self)
        memory["commits"] = memory["refreshes"] = torch.zeros_like(state.row_steps)

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        plan = self.policy.plan_forward(state, region)
        due = [commits >= self.commits for (commits,) in state.carried(self) or [[0]] * state.batch]
        return plan.with_rows_refreshed(state, due)

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        memory = state.memory(self)
        # Of a row that waits for others nothing is kept: the engine counts no refresh, and one stays due.
        refreshed = state.row_refreshes > memory["refreshes"]
        memory["refreshes"] = state.row_refreshes
        memory["commits"] = memory["commits"].masked_fill(refreshed, 0) + decision.commit.sum(1)
        state.carry(self, memory["commits"][:, None])
