"""A window of the suffix."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import (
    CachePolicy,
    DecodingState,
    ForwardPlan,
    ModelFacts,
    NestedCachePolicy,
    Positions,
    Region,
    Source,
)


class SuffixWindow(CachePolicy):
    """Another cache policy that sees only the nearest masks behind the block, and the canvas's tail.

    What is not seen is not computed either; positions keep their ids. With `decay` the nearest masks
    are drawn at the start of a block, the nearer the likelier.
    """

    name: ClassVar[str] = "suffix_window"
    rule: ClassVar[str] = (
        "of the masks at distance d = 0, 1, ... behind the block keep those with d < window (and\n"
        "u < scale phi(decay d / (window - 1)), phi the normal density), and the last `tail` of the canvas."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Streaming-dLLM", "with window 96, tail 1", arxiv="2601.17917"),
        Source("DPad", "with window 256, tail 0, decay 4, scale 2", arxiv="2508.14148"),
    )
    needs: ClassVar[tuple[str, ...]] = ("a visible set", "random numbers with `decay`")
    policy: NestedCachePolicy = Field(description="The cache policy within what is visible.")
    window: int = Field(96, ge=0, description="Masks that stay visible behind the block.")
    tail: int = Field(1, ge=0, description="Last targets of the canvas that stay visible.")
    decay: float | None = Field(
        None, gt=0, description="How fast the chance falls with distance; none keeps all."
    )
    scale: float = Field(2.0, gt=0, description="Factor of the chance; has an effect with `decay`.")

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        self.refuse_without_effect("scale", self.decay is None, "without decay")
        return self

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        # Given text from the first target on, in the row that has most of it.
        given = state.valid & ~state.targets & (state.columns >= state.first_target)
        state.shared(self)["given"] = int(given.sum(1).max())

    def block_started(self, state: DecodingState, region: Region) -> None:
        if self.decay is not None:
            canvas = Positions.between(state, 0, state.length)
            state.memory(self)["drawn"] = state.uniform(self, canvas)

    def _visible(self, state: DecodingState, region: Region) -> Tensor:
        distance = state.columns - region.positions.end()
        near = distance < self.window
        if self.decay is not None:
            x = self.decay * distance / max(self.window - 1, 1)
            chance = self.scale * (-0.5 * x**2).exp() / math.sqrt(2 * math.pi)
            near = near & ((state.memory(self)["drawn"] < chance) | (distance < 0))
        near = near | (state.columns >= state.end_of_targets[:, None] - self.tail)
        # What was given, between the targets or behind them, is text and no suffix.
        return near | ~state.targets

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        inner = self.policy.plan_forward(state, region)
        visible = self._visible(state, region)
        if inner.visible is not None:
            visible = visible & inner.visible
        return ForwardPlan.of(
            inner.mask(state) & visible,
            self._width(state, region, inner),
            visible=visible,
            store=inner.store,
            refresh=inner.is_refresh(state.length) or inner.refresh,
        )

    def _width(self, state: DecodingState, region: Region, inner: ForwardPlan) -> int:
        """A bound on what a row computes, known without looking at the device."""
        if region.span is None:
            return inner.width
        start = inner.positions.span.start if inner.positions.span else 0
        seen: int = max(region.span.stop - start, 0) + self.window + self.tail + state.shared(self)["given"]
        return min(inner.width, seen)
