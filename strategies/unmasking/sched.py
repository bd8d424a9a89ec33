"""Early commit on a smooth schedule."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from dllm_sampling.strategies.shared.parts import and_also
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import (
    Decision,
    DecodingState,
    NestedUnmaskingPolicy,
    Observation,
    Source,
    UnmaskingPolicy,
    realigned,
)


class SchED(UnmaskingPolicy):
    """Another policy, until the open positions are settled on average; then all of them at once.

    Settled means that the mean gap of their two largest logits reaches a threshold that falls smoothly
    with progress p, and (`stable`) that none of their candidates changed since the last forward. Meant
    for the `whole_canvas` schedule.
    """

    name: ClassVar[str] = "sched"
    rule: ClassVar[str] = (
        "commit all when mean gap >= tau(p); linear hi + (lo - hi) p,\n"
        "cosine lo + (hi - lo)(1 + cos pi p)/2, exponential lo + (hi - lo) e^(-k p)."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("SchED", "and its code for Dream, which adds the condition of stability", arxiv="2512.02892"),
    )
    needs: ClassVar[tuple[str, ...]] = ("logits and the last candidates", "the row's clock", "another policy")
    policy: NestedUnmaskingPolicy = Field(description="What commits until then.")
    schedule: Literal["cosine", "linear", "exponential"] = Field("cosine", description="How tau falls.")
    tau_high: float = Field(7.5, ge=0, description="Gap asked for at the start.")
    tau_low: float = Field(2.5, ge=0, description="Gap asked for at the end; at most `tau_high`.")
    tau_k: float = Field(4.0, gt=0, description="Rate of the exponential schedule.")
    stable: bool = Field(True, description="Whether no candidate may have changed.")
    steps: int | None = Field(
        None, ge=2, description="Steps that count as the whole; none takes the share of targets committed."
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        self.refuse_without_effect("tau_k", self.schedule != "exponential", f"on schedule={self.schedule!r}")
        self.refuse_above("tau_low", "tau_high")
        return self

    def idle_steps(self, targets: int) -> int:
        return self.policy.idle_steps(targets)

    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision:
        top = observation.logits.topk(2, -1)
        gaps = (top.values[..., 0] - top.values[..., 1]).where(observation.masked, 0.0)
        gap = gaps.sum(1) / observation.masked.sum(1).clamp_min(1)
        progress = state.progress if self.steps is None else state.row_steps / (self.steps - 1)
        settled = gap >= self._tau(progress.clamp_max(1.0))
        if self.stable:
            memory, best = state.memory(self), top.indices[..., 0]
            positions = observation.positions.columns
            same = torch.zeros_like(settled)  # nothing to compare with yet
            if "best" in memory:
                before = realigned(memory["best"], memory["positions"], positions, -1)
                same = ((best == before) | ~observation.masked).all(1)
            memory["best"], memory["positions"] = best, positions
            settled = settled & same
        return and_also(self.policy.select(state, observation), settled[:, None])

    def _tau(self, progress: Tensor) -> Tensor:
        if self.schedule == "linear":
            return self.tau_high + (self.tau_low - self.tau_high) * progress
        if self.schedule == "cosine":
            return self.tau_low + (self.tau_high - self.tau_low) * (1 + (math.pi * progress).cos()) / 2
        return self.tau_low + (self.tau_high - self.tau_low) * (-self.tau_k * progress).exp()
