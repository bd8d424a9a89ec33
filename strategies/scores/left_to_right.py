"""Left to right."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score, Source


class LeftToRight(Score):
    """The position alone: from left to right, as autoregressive models write."""

    name: ClassVar[str] = "left_to_right"
    rule: ClassVar[str] = "s_i = -i."
    sources: ClassVar[tuple[Source, ...]] = (Source("LLaDA", "autoregressive sampling", arxiv="2502.09992"),)
    needs: ClassVar[tuple[str, ...]] = ("the positions alone",)

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return -observation.positions.columns.float()
