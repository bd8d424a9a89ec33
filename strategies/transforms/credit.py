"""Trace credit."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, LogitsTransform, Observation, Source, realigned


class Credit(LogitsTransform):
    """Raise the logits of tokens that a position has kept predicting since its block began.

    Each forward every credit decays and the most likely token of each open position earns some.
    Published with `confidence_threshold`.
    """

    name: ClassVar[str] = "credit"
    rule: ClassVar[str] = "C *= beta; C[i, argmax] += c_i^gamma at open i; logits + alpha log(1 + C)."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("CreditDecoding", "as in dInfer's code", arxiv="2510.06133"),
    )
    needs: ClassVar[tuple[str, ...]] = ("memory: region x vocabulary floats a row",)
    alpha: float = Field(0.7, ge=0, description="Weight of the credit in the logits.")
    beta: float = Field(0.8, ge=0, le=1, description="What is left of a credit after a forward.")
    gamma: float = Field(0.2, ge=0, description="Power of the confidence that is earned.")

    def transform(self, state: DecodingState, observation: Observation) -> Tensor:
        memory, logits = state.memory(self), observation.logits
        positions = observation.positions.columns
        credit = torch.zeros_like(logits)
        if "credit" in memory and state.block_forwards:
            credit = self.beta * realigned(memory["credit"], memory["positions"], positions, 0.0)
        best = logits.argmax(-1, keepdim=True)
        earned = logits.softmax(-1).gather(-1, best) ** self.gamma
        credit = credit.scatter_add(-1, best, earned * observation.masked[..., None])
        memory["credit"], memory["positions"] = credit, positions
        return logits + self.alpha * credit.log1p()
