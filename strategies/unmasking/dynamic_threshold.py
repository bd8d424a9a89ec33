"""A threshold that follows progress."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, NestedScore, Observation, Source, UnmaskingPolicy, reranked


class DynamicThreshold(UnmaskingPolicy):
    """Commit by a confidence threshold that falls as what the model sees fills up.

    A block's first forward uses the threshold itself. The open share is taken over the region and the
    targets behind it that count as seen: the nearest `window` and the last `tail`, as `suffix_window`
    shows them; window 0 and tail 0 take the region alone. Another `score` takes as many positions as
    pass, the best by that score.
    """

    name: ClassVar[str] = "dynamic_threshold"
    rule: ClassVar[str] = "tau = threshold (1 - alpha (1 - r)), r the open share."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Streaming-dLLM", "and its code for LLaDA", arxiv="2601.17917"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidences and the open targets",)
    threshold: float = Field(0.9, gt=0, le=1, description="Threshold while everything is open.")
    alpha: float = Field(0.3, ge=0, lt=1, description="How far it falls in all, as a share.")
    window: int = Field(96, ge=0, description="Targets behind the region that count as seen.")
    tail: int = Field(1, ge=0, description="Last targets of the canvas that count as seen.")
    score: NestedScore = Field(
        "confidence", validate_default=True, description="Which positions, where these are so many."
    )

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        share = self._open_share(state, observation)
        if state.block_forwards == 0:
            share = torch.ones_like(share)
        tau = self.threshold * (1 - self.alpha * (1 - share))
        sure = observation.log_confidence >= tau.log()
        return reranked(sure, self.score(state, observation), observation)

    def _open_share(self, state: DecodingState, observation: Observation) -> Tensor:
        end = observation.positions.end()
        near = state.columns < end + self.window
        tail = state.columns >= state.end_of_targets[:, None] - self.tail
        behind = state.targets & (state.columns >= end) & (near | tail)
        seen = torch.cat([observation.masked | observation.committed, behind], 1)
        still_open = torch.cat([observation.masked, behind & state.masked], 1)
        return still_open.sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)
