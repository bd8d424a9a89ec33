"""Frechet bounds."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import (
    DecodingState,
    NestedScore,
    Observation,
    Source,
    UnmaskingPolicy,
    in_order,
    largest,
    reranked,
)


class Frechet(UnmaskingPolicy):
    """Commit the longest prefix of the most confident whose joint probability is surely not small.

    With c_(1) >= c_(2) >= ..., the joint probability of the first n candidates is at least
    L_n = sum of c_(j) - (n - 1), and that of anything else at position n at most U_n = 1 - c_(n); the
    prefix ends where L_n - U_n falls to `delta`. The most confident position is always committed. At
    equal confidences this is `factor` with factor = 1 - delta. Another `score` takes as many positions,
    the best by that score.
    """

    name: ClassVar[str] = "frechet"
    rule: ClassVar[str] = "commit #{n : L_n - U_n > delta}, at least 1."
    sources: ClassVar[tuple[Source, ...]] = (Source("Fast-dLLM++", "and its code", arxiv="2606.02955"),)
    needs: ClassVar[tuple[str, ...]] = ("the confidences", "a score")
    delta: float = Field(0.25, ge=0, lt=1, description="Least gap between the two bounds.")
    score: NestedScore = Field(
        "confidence", validate_default=True, description="Which positions, where these are so many."
    )

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        ordered, rank = in_order(observation.log_confidence, observation.eligible)
        # In doubts 1 - c, which keep their precision where confidences round to 1.
        doubts = -ordered.expm1()
        passes = 1 - doubts.cumsum(-1) - doubts > self.delta
        chosen = rank < largest(passes).clamp_min(1)
        return reranked(chosen, self.score(state, observation), observation)
