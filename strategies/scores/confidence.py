"""Confidence."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score, Source


class Confidence(Score):
    """The probability of the candidate, as a logarithm: the surest first."""

    name: ClassVar[str] = "confidence"
    rule: ClassVar[str] = "s_i = log c_i, c_i the probability of the candidate."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("LLaDA", "low-confidence remasking", arxiv="2502.09992"),
        Source("Dream", "its `maskgit_plus`", arxiv="2508.15487"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidences alone",)

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.log_confidence
