"""All that any commits."""

from __future__ import annotations

from typing import ClassVar

import torch
from dllm_sampling.strategies.shared.parts import Policies, masks_of
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy


class Union(UnmaskingPolicy):
    """What any of several policies commits."""

    name: ClassVar[str] = "union"
    rule: ClassVar[str] = "the union of several sets."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("published rules of several conditions", "such as Hierarchy-dLLM's", openreview="ZsIQUjQtdW"),
    )
    needs: ClassVar[tuple[str, ...]] = ("policies that commit and do nothing else",)
    policies: Policies = Field(description="Policies; each commits, none remasks.")

    def idle_steps(self, targets: int) -> int:
        return max(policy.idle_steps(targets) for policy in self.policies)

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        return torch.stack([masks_of(p, state, observation) for p in self.policies]).any(0)
