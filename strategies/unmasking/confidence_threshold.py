"""Confidence threshold."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy


class ConfidenceThreshold(UnmaskingPolicy):
    """Commit every position at least `threshold` confident, or else the single most confident one.

    Where (n + 1) (1 - threshold) <= 1, committing n such positions at once gives what one at a time
    would.
    """

    name: ClassVar[str] = "confidence_threshold"
    rule: ClassVar[str] = "commit {i : c_i >= threshold}, or argmax c."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Fast-dLLM", "section 3.3, algorithm 1 and theorem 1", arxiv="2505.22618"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidences alone",)
    threshold: float = Field(0.9, gt=0, le=1, description="Least probability of a position to commit.")

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.log_confidence >= math.log(self.threshold)
