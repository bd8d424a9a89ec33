"""Entropy threshold."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy, or_the_best


class EntropyThreshold(UnmaskingPolicy):
    """Commit every position whose entropy is at most `threshold`, or else the one of least entropy.

    Entropies are in nats over the whole vocabulary, so a threshold means different doubts for different
    models.
    """

    name: ClassVar[str] = "entropy_threshold"
    rule: ClassVar[str] = "commit {i : H_i <= threshold}, or argmin H."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("d3LLM", "and its code for LLaDA; that for Dream compares strictly", arxiv="2601.07568"),
    )
    needs: ClassVar[tuple[str, ...]] = ("entropies",)
    threshold: float = Field(0.5, ge=0, description="Largest entropy of a position to commit, in nats.")

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        entropy = observation.entropy
        return or_the_best(entropy <= self.threshold, -entropy, observation.eligible)
