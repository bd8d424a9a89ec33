"""A fixed budget a forward."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import (
    ConfigurationError,
    DecodingState,
    ModelFacts,
    NestedScore,
    Observation,
    Source,
    UnmaskingPolicy,
    top_k,
)


class FixedK(UnmaskingPolicy):
    """Commit the best positions up to a budget: `k` every forward, or `steps` shared out in all.

    With `steps`, a block of n targets gets its share S of the steps, and its i-th forward commits
    n // S positions, one more for the first n % S: LLaDA's schedule where all blocks are equal.
    """

    name: ClassVar[str] = "fixed_k"
    rule: ClassVar[str] = "commit the k positions of the largest score."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("LLaDA", "low-confidence remasking and its random variant", arxiv="2502.09992"),
    )
    needs: ClassVar[tuple[str, ...]] = ("a score", "with `steps`, a schedule that knows its blocks ahead")
    k: int | None = Field(None, ge=1, description="Positions a forward; 1 where `steps` is not given.")
    steps: int | None = Field(None, ge=1, description="Forwards for a whole row, shared by its blocks.")
    score: NestedScore = Field("confidence", validate_default=True, description="Which positions come first.")

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.k is not None and self.steps is not None:
            raise ConfigurationError(f"give k or steps, not both (k={self.k}, steps={self.steps}).")
        return self

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        if self.steps is None:
            return
        targets = state.targets_in_block
        if targets is None:
            raise ConfigurationError(
                f"steps={self.steps} cannot be shared out: this schedule does not know its blocks "
                "ahead; give k instead."
            )
        used = targets > 0
        if int(used.sum(1).max()) > self.steps:
            raise ConfigurationError(
                f"steps={self.steps} is less than the number of blocks, {int(used.sum(1).max())}."
            )
        # Cumulative, so that the shares add up to `steps` and equal blocks get equal shares.
        reached = targets.cumsum(1) * self.steps // targets.sum(1, keepdim=True)
        shares = reached.diff(dim=1, prepend=torch.zeros_like(reached[:, :1]))
        memory = state.memory(self)
        memory["targets"], memory["steps"] = targets, shares.clamp_min(1)

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        return top_k(self.score(state, observation), observation.eligible, self._budget(state, observation))

    def _budget(self, state: DecodingState, observation: Observation) -> Tensor | int:
        if self.steps is None:
            return self.k or 1
        memory = state.memory(self)
        block = observation.blocks.masked_fill(~observation.masked, -1).amax(1, keepdim=True).clamp_min(0)
        targets: Tensor = memory["targets"].gather(1, block)[:, 0]
        steps: Tensor = memory["steps"].gather(1, block)[:, 0]
        extra = state.block_steps < targets % steps
        return (targets // steps + extra).clamp_min(1)
