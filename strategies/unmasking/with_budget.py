"""A cap on another policy."""

from __future__ import annotations

from typing import ClassVar

from dllm_sampling.strategies.shared.parts import masks_of
from pydantic import Field
from torch import Tensor

from dllm_sampling import (
    DecodingState,
    NestedScore,
    NestedUnmaskingPolicy,
    Observation,
    Source,
    UnmaskingPolicy,
    top_k,
)


class WithBudget(UnmaskingPolicy):
    """The best of what another policy commits, at most `k`: by default the most confident."""

    name: ClassVar[str] = "with_budget"
    rule: ClassVar[str] = "the k positions of a set that have the largest score."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("the caps of published rules", "such as WINO's", arxiv="2507.18578"),
    )
    needs: ClassVar[tuple[str, ...]] = ("a score", "a policy that commits and does nothing else")
    policy: NestedUnmaskingPolicy = Field(description="The policy that proposes.")
    k: int = Field(ge=1, description="Most positions committed a forward.")
    score: NestedScore = Field("confidence", validate_default=True, description="Which positions come first.")

    def idle_steps(self, targets: int) -> int:
        return self.policy.idle_steps(targets)

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        proposed = masks_of(self.policy, state, observation) & observation.eligible
        return top_k(self.score(state, observation), proposed, self.k)
