"""Left to right."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Score


class LeftToRight(Score):
    """The position alone: from left to right, as autoregressive models write.

    Needs the positions alone.
    Rule: s_i = -i.
    Source: LLaDA (arXiv:2502.09992), autoregressive sampling.
    """

    name: ClassVar[str] = "left_to_right"

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        return -observation.positions.columns.float()
