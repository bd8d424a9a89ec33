"""Entropy threshold."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, NestedScore, Observation, Source, UnmaskingPolicy, top_k


class EntropyThreshold(UnmaskingPolicy):
    """Commit every position whose entropy is at most `threshold`, or else the one of least entropy.

    Entropies are in nats over the whole vocabulary, so a threshold means different doubts for
    different models. Another `score` takes as many positions, the best by that score.
    """

    name: ClassVar[str] = "entropy_threshold"
    rule: ClassVar[str] = "commit {i : H_i <= threshold}, or argmin H."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("d3LLM", "and its code for LLaDA; that for Dream compares strictly", arxiv="2601.07568"),
    )
    needs: ClassVar[tuple[str, ...]] = ("entropies", "a score")
    threshold: float = Field(0.5, ge=0, description="Largest entropy of a position to commit, in nats.")
    score: NestedScore = Field(
        "entropy", validate_default=True, description="Which positions, where these are so many."
    )

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        sure = observation.eligible & (observation.entropy <= self.threshold)
        return top_k(self.score(state, observation), observation.eligible, sure.sum(1).clamp_min(1))
