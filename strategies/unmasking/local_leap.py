"""Local leaps around anchors."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy


class LocalLeap(UnmaskingPolicy):
    """Commit the confident positions, and near them what passes a lower threshold.

    Around a confident position (an anchor) its neighbours' predictions are more reliable. With
    relaxed_threshold = threshold it is the plain threshold.
    """

    name: ClassVar[str] = "local_leap"
    rule: ClassVar[str] = (
        "A = {c_i >= threshold}; commit A and {c_i >= relaxed_threshold : some a in A has\n"
        "|i - a| <= radius}, or the best."
    )
    sources: ClassVar[tuple[Source, ...]] = (Source("LocalLeap", "and its code", arxiv="2510.07081"),)
    needs: ClassVar[tuple[str, ...]] = ("the confidences and the positions",)
    threshold: float = Field(0.9, gt=0, le=1, description="Least confidence of an anchor.")
    relaxed_threshold: float = Field(
        0.75, gt=0, le=1, description="Least confidence near an anchor; at most `threshold`."
    )
    radius: int = Field(4, ge=0, description="Positions on each side that are near.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.refuse_above("relaxed_threshold", "threshold")
        return self

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        score, positions = observation.log_confidence, observation.positions.columns
        anchors = observation.eligible & (score >= math.log(self.threshold))
        distance = (positions[:, :, None] - positions[:, None, :]).abs()
        near = ((distance <= self.radius) & anchors[:, None, :]).any(-1)
        return anchors | (near & (score >= math.log(self.relaxed_threshold)))
