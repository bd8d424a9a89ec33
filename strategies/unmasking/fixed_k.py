"""A fixed budget a forward."""

from __future__ import annotations

from typing import ClassVar, Literal

from dllm_sampling.strategies.shared.budget import Budgeted
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source


class FixedK(Budgeted):
    """Commit the best positions up to a budget: `k` every forward, or `steps` shared out in all.

    With `steps`, a block of n targets gets its share S of the steps, and its i-th forward commits n //
    S positions, one more for the first n % S: LLaDA's schedule where all blocks are equal.
    """

    name: ClassVar[str] = "fixed_k"
    rule: ClassVar[str] = "commit the k positions of the largest score."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("LLaDA", "low-confidence remasking and its random variant", arxiv="2502.09992"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "what `score` ranks by, random numbers where that is chance",
        "with `steps`, a schedule that knows its blocks ahead",
    )
    score: Literal["confidence", "margin", "entropy", "random"] = Field(
        "confidence", description="What makes a position better; entropy counts downwards."
    )

    def scores(self, state: DecodingState, observation: Observation) -> Tensor:
        if self.score == "random":
            return state.uniform(self, observation.positions)
        if self.score == "entropy":
            return -observation.entropy
        return observation.margin if self.score == "margin" else observation.log_confidence
