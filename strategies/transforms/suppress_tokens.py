"""Suppressed tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from dllm_sampling.strategies.shared.token_ids import token_id
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, LogitsTransform, ModelFacts, Observation, Source


class SuppressTokens(LogitsTransform):
    """Never write some tokens: their logits become minus infinity, and the others share their probability."""

    name: ClassVar[str] = "suppress_tokens"
    rule: ClassVar[str] = "logits[v] = -inf for v in `tokens`."
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "LLaDA",
            "`logits_eos_inf` of its code, which suppresses the end of sequence",
            arxiv="2502.09992",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("the logits", "the checkpoint's tokenizer for tokens given as text")
    tokens: tuple[int | str, ...] = Field(
        min_length=1, description='Ids, texts of single tokens, or "eos" for every end of sequence.'
    )

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        ids = [i for token in self.tokens for i in (facts.eos_token_ids if token == "eos" else [token])]
        index = [token_id(i, facts, "tokens") for i in ids]
        state.shared(self)["ids"] = torch.tensor(index, device=facts.device)

    def transform(self, state: DecodingState, observation: Observation) -> Tensor:
        return observation.logits.index_fill(-1, state.shared(self)["ids"], -torch.inf)
