"""Path planning."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import Decision, DecodingState, Observation, Source, UnmaskingPolicy, in_order


class P2(UnmaskingPolicy):
    """Rank open and committed positions together, and let only a growing share of the best be unmasked.

    Whatever falls out of that share is masked again; what stays keeps its token. Meant for the
    `whole_canvas` schedule.
    """

    name: ClassVar[str] = "p2"
    rule: ClassVar[str] = (
        "at step i of T mask the floor(N (1 - kappa(i / T))) positions of least s, s = log c at open\n"
        "positions and eta log c at committed ones, c the probability of the position's best token now."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "P2-self",
            "and its code (Path-Planning), which scores committed positions by the best token, not by "
            "the one in place",
            arxiv="2502.03540",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("predictions at committed positions", "remasking", "the row's clock")
    steps: int = Field(256, ge=1, description="Forwards a row takes; T.")
    eta: float = Field(1.0, ge=0, description="Above 1 more is masked again; 0 masks nothing again.")
    kappa: Literal["linear", "sine", "geometric"] = Field(
        "linear", description="Share unmasked at time t: t, sin(pi t / 2), 1 - (1 - t)^2."
    )

    def idle_steps(self, targets: int) -> int:
        return self.steps * (targets + 1)  # a step may mask all that it does not commit

    def select(self, state: DecodingState, observation: Observation) -> Decision:
        ranked = observation.eligible | observation.committed
        score = observation.log_confidence
        score = torch.where(observation.committed, score * self.eta, score)
        time = ((state.row_steps + 1).double() * (1 / self.steps)).clamp_max(1.0)
        share = {
            "linear": lambda t: t,
            "sine": lambda t: (t * (math.pi / 2)).sin(),
            "geometric": lambda t: 1 - (1 - t) ** 2,
        }[self.kappa](time)
        total = ranked.sum(1)
        kept = total - (total.float() * (1 - share).float()).long()  # as published: in float32
        rank: Tensor = in_order(score, ranked)[1]
        keep = rank < kept[:, None]
        return Decision(keep & observation.eligible, remask=observation.committed & ~keep)
