"""Confidence threshold."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, NestedScore, Observation, Source, UnmaskingPolicy, reranked


class ConfidenceThreshold(UnmaskingPolicy):
    """Commit every position at least `threshold` confident, or else the single most confident one.

    Where (n + 1) (1 - threshold) <= 1, committing n such positions at once gives what one at a time
    would. Another `score` takes as many positions as pass, the best by that score; where none passes,
    the engine still commits the most confident one.
    """

    name: ClassVar[str] = "confidence_threshold"
    rule: ClassVar[str] = "commit {i : c_i >= threshold}, or argmax c."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Fast-dLLM", "section 3.3, algorithm 1 and theorem 1", arxiv="2505.22618"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidences", "a score")
    threshold: float = Field(0.9, gt=0, le=1, description="Least probability of a position to commit.")
    score: NestedScore = Field(
        "confidence", validate_default=True, description="Which positions, where these are so many."
    )

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        sure = observation.log_confidence >= math.log(self.threshold)
        return reranked(sure, self.score(state, observation), observation)
