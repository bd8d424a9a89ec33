"""Confidence."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score


class Confidence(Score):
    """The probability of the candidate, as a logarithm: the surest first.

    Needs the confidences alone.
    Rule: s_i = log c_i, c_i the probability of the candidate.
    Source: LLaDA (arXiv:2502.09992), low-confidence remasking; Dream's `maskgit_plus` (arXiv:2508.15487).
    """

    name: ClassVar[str] = "confidence"

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.log_confidence
