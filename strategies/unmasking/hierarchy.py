"""Hierarchical decoding."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy, log_of, or_the_best


class Hierarchy(UnmaskingPolicy):
    """Commit the confident, and the best of every run of open positions: divide and conquer.

    A run is a maximal row of adjacent open positions in the region; its most confident one is committed
    above `low_threshold`, which splits the run, and every other one above `threshold`.
    """

    name: ClassVar[str] = "hierarchy"
    rule: ClassVar[str] = (
        "commit {c_i > threshold} and {argmax of a run : c_i > low_threshold}, or the best of all."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Hierarchy-dLLM", "whose remasking variant is not built", openreview="ZsIQUjQtdW"),
        Source(
            "dInfer's code of it",
            "where exact ties within a run all commit; here the first does",
            arxiv="2510.08666",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidences and which positions adjoin",)
    threshold: float = Field(0.9, gt=0, le=1, description="Above it every position is committed.")
    low_threshold: float = Field(
        0.4, ge=0, le=1, description="Above it the best of a run is committed; at most `threshold`."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.refuse_above("low_threshold", "threshold")
        return self

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        eligible, score = observation.eligible, observation.log_confidence
        best = self._best_of_runs(observation.positions.columns, eligible, score)
        sure = score > math.log(self.threshold)
        likely = score > log_of(self.low_threshold)
        return or_the_best(sure | (best & likely), score, eligible)

    @staticmethod
    def _best_of_runs(positions: Tensor, eligible: Tensor, score: Tensor) -> Tensor:
        adjoins = torch.zeros_like(eligible)
        next_to = positions[:, 1:] == positions[:, :-1] + 1
        adjoins[:, 1:] = eligible[:, 1:] & eligible[:, :-1] & next_to
        run = (~adjoins).cumsum(-1) - 1  # what is not eligible is a run of its own
        highest = torch.full_like(score, -torch.inf).scatter_reduce(1, run, score, "amax")
        tied = eligible & (score == highest.gather(1, run))
        place = torch.arange(score.shape[1], device=score.device).expand_as(run)
        none = score.shape[1]
        first = torch.full_like(run, none).scatter_reduce(1, run, place.masked_fill(~tied, none), "amin")
        return place == first.gather(1, run)
