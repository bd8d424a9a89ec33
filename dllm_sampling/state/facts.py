"""What policies may know of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelFacts:
    """What policies may know of the model; handed to `begin`.

    Attributes:
        family: The name of the backbone.
        tokenizer: That of the checkpoint, where it has one.
        mask_token_id: What stands at open targets.
        pad_token_id: What stands beside a text.
        eos_token_ids: The end of sequence, and the chat template's end of turn where that is another.
        vocab_size: Ids that the model predicts.
        max_length: Columns that a canvas may have.
        allowed: Bool `[vocabulary]`, the ids that may be committed: neither the mask id nor one that the
            tokenizer does not have.
        banned: The other ids, a list in a tensor.
    """

    family: str
    tokenizer: PreTrainedTokenizerBase | None
    mask_token_id: int
    pad_token_id: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    max_length: int
    allowed: Tensor
    banned: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "banned", (~self.allowed).nonzero()[:, 0])

    @property
    def device(self) -> torch.device:
        """The device of the canvas and of every tensor a policy sees."""
        return self.allowed.device
