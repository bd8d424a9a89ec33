"""Factor-based parallel decoding."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, NestedScore, Observation, Source, UnmaskingPolicy, in_order, reranked


class Factor(UnmaskingPolicy):
    """Commit the n most confident positions, for the largest n with (n + 1)(1 - c_(n)) < factor.

    c_(n) is the n-th largest confidence. Where no n passes, the single most confident position.
    The published code commits one more where only the last candidate fails; this is the paper's rule.
    Another `score` takes n positions too, the best by that score.
    """

    name: ClassVar[str] = "factor"
    rule: ClassVar[str] = "commit the n largest, n = max {n : (n + 1)(1 - c_(n)) < factor}, at least 1."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Fast-dLLM", "section 3.3, factor-based decoding", arxiv="2505.22618"),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidences", "a score")
    factor: float = Field(1.0, gt=0, description="Bound on (n + 1)(1 - c_(n)).")
    score: NestedScore = Field(
        "confidence", validate_default=True, description="Which positions, where these are so many."
    )

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        ordered, rank = in_order(observation.log_confidence, observation.eligible)
        n = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
        passes = (n + 1) * -ordered.expm1() < self.factor
        passes = passes & (n <= observation.eligible.sum(-1, keepdim=True))
        count = (n * passes).amax(-1, keepdim=True)
        return reranked(rank < count, self.score(state, observation), observation)
