"""Dream's time schedule."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from dllm_sampling import DecodingState, ModelFacts, Observation, Source, UnmaskingPolicy, top_k


class DreamSchedule(UnmaskingPolicy):
    """Commit a share 1 - s/t of the open targets as time t runs from 1 to `eps` in equal steps.

    The best by `alg`, floor(masked * (1 - s/t)) of them, which may be none, and all on the last
    step; `origin` commits each open target with that probability. Meant for the `whole_canvas` schedule
    and `sampling.confidence = "filtered"`.
    """

    name: ClassVar[str] = "dream_schedule"
    rule: ClassVar[str] = (
        "at step i of T commit the floor(m (1 - t_(i+1) / t_i)) best of m open targets, with\n"
        "t_i = 1 - (1 - eps) i / T; all of them at the last step."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Dream", "and its published sampler", arxiv="2508.15487"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "the row's clock",
        "what `alg` ranks by",
        "random numbers for `origin` and above `alg_temp` 0",
    )
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = Field(
        "entropy", description="Which positions, by Dream's names: chance, confidence, margin, low entropy."
    )
    steps: int = Field(512, ge=1, description="Forwards a row takes at most.")
    eps: float = Field(1e-3, gt=0, lt=1, description="Time of the last step.")
    alg_temp: float = Field(
        0.0, ge=0, description="Temperature of the choice of positions: 0 takes the best, above 0 draws."
    )

    @model_validator(mode="after")
    def _alg_temp_has_an_effect(self) -> Self:
        self.refuse_without_effect("alg_temp", self.alg == "origin", "on alg='origin'")
        return self

    def idle_steps(self, targets: int) -> int:
        return self.steps

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        times = torch.linspace(1, self.eps, self.steps + 1)
        shares = 1 - times[1:] / times[:-1]
        shares[-1] = 1
        state.shared(self)["shares"] = shares.to(facts.device)

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        step = state.row_steps.clamp_max(self.steps - 1)[:, None]
        share: Tensor = state.shared(self)["shares"][step]
        if self.alg == "origin":
            return state.uniform(self, observation.positions) < share
        count = (observation.masked.sum(1, keepdim=True) * share).long()[:, 0]
        return top_k(self._scores(state, observation), observation.eligible, count)

    def _scores(self, state: DecodingState, observation: Observation) -> Tensor:
        # No nested score: the published temperature divides these very quantities.
        scores: Tensor
        if self.alg == "entropy":
            scores = -observation.entropy
        elif self.alg == "topk_margin":
            scores = observation.margin
        else:
            scores = observation.log_confidence.exp()
        if self.alg_temp > 0:
            # The k best of these are k draws without replacement from softmax(scores / alg_temp).
            noise = -(-state.uniform(self, observation.positions).log()).log()
            scores = scores / self.alg_temp + noise
        return scores
