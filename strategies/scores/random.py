"""Chance."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score


class Random(Score):
    """A number drawn for every position in every step: each order is as likely as any other.

    A row draws the same numbers alone and in any batch. Needs random numbers.
    Rule: s_i uniform in (0, 1).
    Source: LLaDA (arXiv:2502.09992), random remasking.
    """

    name: ClassVar[str] = "random"

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return state.uniform(self, observation.positions)
