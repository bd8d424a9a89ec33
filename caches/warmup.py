"""Refreshes at the start of a run."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dllm_sampling import (
    CachePolicy,
    Decision,
    DecodingState,
    ForwardPlan,
    NestedCachePolicy,
    Observation,
    Region,
    Source,
)


class WarmUp(CachePolicy):
    """Another cache policy, once a row has had its first forwards, which all are refreshes.

    Early predictions change most, and stale entries hurt them most.
    """

    name: ClassVar[str] = "warmup"
    rule: ClassVar[str] = (
        "everything in the first `forwards` forwards of a row, then what the other policy plans."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("dInfer", "which takes 4 and goes on with `windowed`", arxiv="2510.08666"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "each row's clock, carried by the read-back",
        "another cache policy",
    )
    policy: NestedCachePolicy = Field(description="The cache policy afterwards.")
    forwards: int = Field(4, ge=1, description="A row's first forwards of a run, all refreshes.")

    @property
    def exact(self) -> bool:
        return self.policy.exact

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        return self.policy.plan_forward(state, region).with_rows_refreshed(state, self._due(state))

    def _due(self, state: DecodingState) -> list[bool]:
        return [steps < self.forwards for (steps,) in state.carried(self) or [[0]] * state.batch]

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        if any(self._due(state)):
            state.carry(self, state.row_steps[:, None])
