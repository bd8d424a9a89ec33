"""Classifier-free guidance."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, ForwardPlan, LogitsTransform, Observation, Source


class ClassifierFreeGuidance(LogitsTransform):
    """Lead away from what the model would write without the prompt.

    Every forward computes a second canvas in which the prompt is masked, with keys and values of its
    own: twice the positions, which are counted.
    """

    name: ClassVar[str] = "classifier_free_guidance"
    rule: ClassVar[str] = "logits = u + (scale + 1) (c - u), u without the prompt, c with it."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("LLaDA", "`cfg_scale` of its code", arxiv="2502.09992"),
        Source("the guidance that LLaDA follows", arxiv="2410.18514"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the hook `canvases`",)
    scale: float = Field(1.0, gt=0, description="How far to lead; 0 would be no guidance.")

    def canvases(self, state: DecodingState, plan: ForwardPlan) -> dict[str, Tensor]:
        given = state.valid & ~state.targets
        return {"unconditional": state.tokens.masked_fill(given, state.facts.mask_token_id)}

    def transform(self, state: DecodingState, observation: Observation) -> Tensor:
        without = observation.branches["unconditional"]
        guided = without + (self.scale + 1) * (observation.logits - without)
        # Minus infinity has no difference to be led by.
        return torch.where(guided.isfinite(), guided, observation.logits)
