"""Early commit."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from dllm_sampling.strategies.shared.parts import and_also
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import (
    ConfigurationError,
    Decision,
    DecodingState,
    ModelFacts,
    NestedUnmaskingPolicy,
    Observation,
    Source,
    UnmaskingPolicy,
)

Gap = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class EarlyCommit(UnmaskingPolicy):
    """Another policy, until the answer is settled; then everything open in the region at once.

    Settled means that the gap between the two largest logits, averaged over the answer's positions
    (committed ones too), reaches a threshold that falls as the row progresses. Meant for the
    `whole_canvas` schedule: only what is in the region can be committed.
    """

    name: ClassVar[str] = "early_commit"
    rule: ClassVar[str] = (
        "commit all when mean gap >= 7.5, 5, 2.5 in the first, second, last third of progress."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Prophet", "and its code, whose answer is 5 positions from a known start", arxiv="2508.19982"),
    )
    needs: ClassVar[tuple[str, ...]] = ("logits at committed positions", "the row's clock", "another policy")
    policy: NestedUnmaskingPolicy = Field(description="What commits until then.")
    answer_start: int | None = Field(
        None, ge=0, description="Where the answer starts, from the first target; none takes all targets."
    )
    answer_length: int = Field(5, ge=1, description="Positions of the answer, where its start is given.")
    gaps: tuple[Gap, Gap, Gap] = Field((7.5, 5.0, 2.5), description="Thresholds, early to late.")
    borders: tuple[Share, Share] = Field((0.33, 0.67), description="Progress at which the next one holds.")
    steps: int | None = Field(
        None, ge=1, description="Steps that count as the whole; none takes the share of targets committed."
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        self.refuse_without_effect("answer_length", self.answer_start is None, "without answer_start")
        if list(self.borders) != sorted(self.borders):
            raise ConfigurationError(f"borders={self.borders} must not fall: the second is the later one.")
        return self

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        if self.answer_start is None:
            return
        targets, end = min(state.row_ends) - state.first_target, self.answer_start + self.answer_length
        if end > targets:
            raise ConfigurationError(
                f"answer_start={self.answer_start} and answer_length={self.answer_length} end at {end}, "
                f"beyond the {targets} positions from the first target to the last."
            )

    def idle_steps(self, targets: int) -> int:
        return self.policy.idle_steps(targets)

    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision:
        top = observation.logits.topk(2, -1).values
        inside = observation.masked | observation.committed
        if self.answer_start is not None:
            place = observation.positions.columns - state.first_target - self.answer_start
            inside = inside & (place >= 0) & (place < self.answer_length)
        gap = (top[..., 0] - top[..., 1]).where(inside, 0.0).sum(1) / inside.sum(1)
        progress = state.progress if self.steps is None else (state.row_steps + 1) / self.steps
        early, middle, late = (gap >= least for least in self.gaps)
        first, second = (progress < border for border in self.borders)
        settled = torch.where(first, early, torch.where(second, middle, late))
        return and_also(self.policy.select(state, observation), settled[:, None])
