"""Entropy-bounded unmasking."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, NestedScore, Observation, Source, UnmaskingPolicy, in_order, largest


class EntropyBound(UnmaskingPolicy):
    """Commit the longest prefix whose joint entropy exceeds its largest one by at most `gamma`.

    Positions are taken in the order of `score`, as published. The sum of entropies bounds the joint
    entropy, so what is committed at once depends on each other by no more than gamma nats, whatever the
    order.
    """

    name: ClassVar[str] = "entropy_bound"
    rule: ClassVar[str] = (
        "the largest k with sum_{j<=k} H_(j) - max_{j<=k} H_(j) <= gamma; k = 1 always passes."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "EB-Sampler",
            "no official code. Defaults as in PC-Sampler's; d2Cache's takes its running maximum across "
            "the batch, which is not followed",
            arxiv="2505.24857",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("entropies", "a score")
    gamma: float = Field(0.01, ge=0, description="Bound in nats.")
    score: NestedScore = Field("entropy", validate_default=True, description="Which positions come first.")

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        ordered, rank = in_order(self.score(state, observation), observation.eligible)
        places = rank.argsort(-1)
        entropy = observation.entropy.gather(-1, places)
        bound = entropy.cumsum(-1) - entropy.cummax(-1).values
        passes = (bound <= self.gamma) & (ordered > -torch.inf)
        passes[:, 0] = True  # a sum of one is its maximum, whatever rounding says
        return rank < largest(passes)
