"""Entropy."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score


class Entropy(Score):
    """The entropy of the prediction, counted downwards: the least uncertain first.

    Needs entropies.
    Rule: s_i = -H_i, H_i in nats over the whole vocabulary.
    Source: Dream (arXiv:2508.15487), its `entropy`.
    """

    name: ClassVar[str] = "entropy"

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return -observation.entropy
