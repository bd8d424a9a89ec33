"""The first that commits."""

from __future__ import annotations

from typing import ClassVar

import torch
from dllm_sampling.strategies.shared.parts import Policies, masks_of
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy


class FirstOf(UnmaskingPolicy):
    """What the first of several policies commits; where that is nothing, the next one, and so on.

    Row by row, of what is eligible.
    """

    name: ClassVar[str] = "first_of"
    rule: ClassVar[str] = "the first non-empty of several sets."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("the fallbacks of published rules", "such as KLASS's to a fixed budget", arxiv="2511.05664"),
    )
    needs: ClassVar[tuple[str, ...]] = ("policies that commit and do nothing else",)
    policies: Policies = Field(description="Policies in order; each commits, none remasks.")

    def idle_steps(self, targets: int) -> int:
        return max(policy.idle_steps(targets) for policy in self.policies)

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        chosen = torch.zeros_like(observation.eligible)
        for policy in self.policies:
            more = masks_of(policy, state, observation) & observation.eligible
            chosen = torch.where(chosen.any(1, keepdim=True), chosen, more)
        return chosen
