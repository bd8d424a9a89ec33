"""Margin."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score, Source


class Margin(Score):
    """The gap between the two largest probabilities: the least ambiguous first."""

    name: ClassVar[str] = "margin"
    rule: ClassVar[str] = "s_i = p_i(1) - p_i(2), the two largest probabilities."
    sources: ClassVar[tuple[Source, ...]] = (Source("Dream", "its `topk_margin`", arxiv="2508.15487"),)
    needs: ClassVar[tuple[str, ...]] = ("margins",)

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.margin
