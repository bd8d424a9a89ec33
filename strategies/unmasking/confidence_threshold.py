"""Confidence threshold."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, UnmaskingPolicy


class ConfidenceThreshold(UnmaskingPolicy):
    """Commit every position at least `threshold` confident, or else the single most confident one.

    Where (n + 1) (1 - threshold) <= 1, committing n such positions at once gives what one at a time
    would. Needs the confidences alone.
    Rule: commit {i : c_i >= threshold}, or argmax c.
    Source: Fast-dLLM (arXiv:2505.22618), section 3.3, algorithm 1 and theorem 1.
    """

    name: ClassVar[str] = "confidence_threshold"
    threshold: float = Field(0.9, gt=0, le=1, description="Least probability of a position to commit.")

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.log_confidence >= math.log(self.threshold)
