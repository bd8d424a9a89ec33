"""Margin."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score


class Margin(Score):
    """The gap between the two largest probabilities: the least ambiguous first.

    Needs margins.
    Rule: s_i = p_i(1) - p_i(2), the two largest probabilities.
    Source: Dream (arXiv:2508.15487), its `topk_margin`.
    """

    name: ClassVar[str] = "margin"

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.margin
