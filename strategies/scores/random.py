"""Chance."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score, Source


class Random(Score):
    """A number drawn for every position in every step: each order is as likely as any other.

    A row draws the same numbers alone and in any batch.
    """

    name: ClassVar[str] = "random"
    rule: ClassVar[str] = "s_i uniform in (0, 1)."
    sources: ClassVar[tuple[Source, ...]] = (Source("LLaDA", "random remasking", arxiv="2502.09992"),)
    needs: ClassVar[tuple[str, ...]] = ("random numbers",)

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return state.uniform(self, observation.positions)
