"""What the models of the conformance suite predict: always the same for the same canvas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.testing.chosen import EOS_FROM_END, ChosenModel
from dllm_sampling.testing.tiny import VOCABULARY, tiny_model

# Behind the tokenizer's ids: an end of sequence and a mask, for tokenizers that have none.
_EXTRA = 2
_SMALL = 12


def _hashed(tokens: Tensor, position_ids: Tensor, vocabulary: int) -> Tensor:
    """Predictions that depend on the whole canvas and on the position, confident in places."""
    # Padding has position 0, so that it does not enter.
    context = (tokens * position_ids).sum(1, keepdim=True) % 9973
    seeds = (context * 31 + position_ids)[..., None] * 7919 + torch.arange(vocabulary) * 104729
    return torch.sin(seeds.double() * 12.9898).float() * 6


def _equal(tokens: Tensor, position_ids: Tensor, vocabulary: int) -> Tensor:
    return torch.zeros(*tokens.shape, vocabulary)


def _certain(tokens: Tensor, position_ids: Tensor, vocabulary: int) -> Tensor:
    wanted = position_ids % (vocabulary - 2)
    return torch.nn.functional.one_hot(wanted, vocabulary).float() * 1e4


def _extreme(tokens: Tensor, position_ids: Tensor, vocabulary: int) -> Tensor:
    values = _hashed(tokens, position_ids, vocabulary)
    return torch.where(values > 0, values * 1e4, -torch.inf).index_fill(-1, torch.tensor([1]), 0.0)


def _ending(tokens: Tensor, position_ids: Tensor, vocabulary: int) -> Tensor:
    values = _hashed(tokens, position_ids, vocabulary)
    values[..., vocabulary - EOS_FROM_END] += 4  # the end of sequence, early and often
    return values


def _leaving(tokens: Tensor, position_ids: Tensor, vocabulary: int) -> Tensor:
    values = _hashed(tokens, position_ids, vocabulary)
    # Texts end at one position, so that rows with prompts of different lengths leave one after the other.
    values[..., vocabulary - EOS_FROM_END] += 40 * (position_ids >= _ENDS_AT)
    return values


_ENDS_AT = 12
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "hashed": _hashed, "all equal": _equal, "all certain": _certain, "extreme": _extreme, "ending": _ending,
    "leaving": _leaving,
}  # fmt: skip


def predicting(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Backbone:
    """A model that predicts one of PREDICTIONS, of few ids, or of those of a tokenizer."""
    vocabulary = _SMALL if tokenizer is None else len(tokenizer) + _EXTRA
    predict = PREDICTIONS[name]
    model = ChosenModel(lambda tokens, ids: predict(tokens, ids, vocabulary), vocabulary)
    return model.with_facts(_facts_with(model.facts, tokenizer))


def tiny_with(tokenizer: PreTrainedTokenizerBase | None) -> Backbone:
    """The tiny transformer, with a tokenizer where one is given."""
    if tokenizer is None:
        return tiny_model()
    model = tiny_model(vocabulary=max(VOCABULARY, len(tokenizer) + _EXTRA))
    return model.with_facts(_facts_with(model.facts, tokenizer))


def _facts_with(facts: ModelFacts, tokenizer: PreTrainedTokenizerBase | None) -> ModelFacts:
    """The facts of a model that has this tokenizer: its ids may be written, its mask id may not."""
    if tokenizer is None:
        return facts
    ends = {*facts.eos_token_ids, tokenizer.eos_token_id} - {None}
    mask = tokenizer.mask_token_id
    mask = facts.mask_token_id if mask is None else mask
    allowed = torch.zeros_like(facts.allowed)
    allowed[[*tokenizer.get_vocab().values(), *ends]] = True
    allowed[mask] = False
    return dataclasses.replace(
        facts, tokenizer=tokenizer, mask_token_id=mask, eos_token_ids=tuple(sorted(ends)), allowed=allowed
    )


LENGTHS = (3, 9, 5)
_IDS = 9


def prompts_for(model: Backbone) -> list[list[int]]:
    """Prompts of different lengths, of the first ids that may be written and end nothing."""
    facts = model.facts
    ids = facts.allowed.nonzero()[: _IDS + len(facts.eos_token_ids), 0].tolist()
    ids = [i for i in ids if i not in facts.eos_token_ids][:_IDS]
    return [[ids[(i * 7 + j) % len(ids)] for j in range(n)] for i, n in enumerate(LENGTHS)]
