"""Entropy."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score, Source


class Entropy(Score):
    """The entropy of the prediction, counted downwards: the least uncertain first."""

    name: ClassVar[str] = "entropy"
    rule: ClassVar[str] = "s_i = -H_i, H_i in nats over the whole vocabulary."
    sources: ClassVar[tuple[Source, ...]] = (Source("Dream", "its `entropy`", arxiv="2508.15487"),)
    needs: ClassVar[tuple[str, ...]] = ("entropies",)

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return -observation.entropy
