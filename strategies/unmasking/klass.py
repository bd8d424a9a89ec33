"""KL-adaptive stability sampling."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source, UnmaskingPolicy, log_of, realigned


class Klass(UnmaskingPolicy):
    """Commit what is confident and has been stable: prediction and distribution stayed as they were.

    Stable is a position whose last `history` divergences KL(p_t || p_{t-1}) were all below
    `kl_threshold`. Where nothing is ready the engine commits the most confident position; for the
    published fallback to a larger budget write `first_of` with `klass` and `fixed_k`.
    """

    name: ClassVar[str] = "klass"
    rule: ClassVar[str] = (
        "commit {i : c_i > threshold and KL_i < kl_threshold in each of the last `history` forwards}."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "KLASS",
            "and its code, which computes the whole canvas, so that in later blocks divergences reach "
            "back before the block; here a block starts without any",
            arxiv="2511.05664",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "the previous distributions, which it keeps: region x vocabulary floats a row",
    )
    threshold: float = Field(0.9, ge=0, lt=1, description="Least confidence of a position to commit.")
    kl_threshold: float = Field(
        0.01, gt=0, description="Divergence below which a step counts as stable, in nats."
    )
    history: int = Field(2, ge=1, description="Steps that must have been stable.")

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        memory, positions = state.memory(self), observation.positions.columns
        now = observation.logits.log_softmax(-1)
        stable = torch.zeros_like(positions)
        if "before" in memory and state.block_forwards:
            # Where nothing was predicted before, a divergence of NaN is below no bound.
            before = realigned(memory["before"], memory["positions"], positions, torch.nan)
            count = realigned(memory["stable"], memory["positions"], positions, 0)
            terms = (now.exp() * (now - before)).masked_fill(now == -torch.inf, 0.0)
            stable = (count + 1) * (terms.sum(-1) < self.kl_threshold)
        memory["before"], memory["stable"], memory["positions"] = now, stable, positions
        sure = observation.log_confidence > log_of(self.threshold)
        return sure & (stable >= self.history)
