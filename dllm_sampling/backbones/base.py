"""A loaded model of a family.

No model code: a family says which stock transformers class its checkpoints fit and how their tensors
are called there.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from dllm_sampling.backbones.checkpoint_facts import facts_of
from dllm_sampling.backbones.execution import Compile, Execution
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.backbones.tokenizer import read_tokenizer
from dllm_sampling.errors import ConfigurationError
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.positions import Positions

# Attention implementations that take a boolean mask.
_BOOLEAN_MASKS = {"sdpa", "sdpa_rope32"}


class Backbone(ABC):
    """A loaded model of one family. Plugins subclass it; `load_model` finds the class by `matches`.

    name: the family. shift: 1 where output i predicts position i + 1, else 0; no policy ever sees it.
    compile: how forwards are run, see `backbones.execution`; "off" leaves the model as it is.
    tokenizer_class: that of folders which hold vocab.json alone, where they name one of their own.
    keys: what config.json calls the stock config's sizes, for messages, where it has other names.
    """

    name: ClassVar[str]
    shift: ClassVar[int] = 0
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase] | None] = None
    keys: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        compile: Compile = "off",
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.facts = facts_of(self.name, model, tokenizer)
        self._flash = "flash" in (model.config._attn_implementation or "")
        if self._flash:
            _drop_position_ids(model)
        self.execution = Execution(
            model, compile, forward=self.logits, device=self.facts.device, flash=self._flash
        )

    # What a family says ------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's config.json is of this family."""

    @classmethod
    @abstractmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        """The stock class, its config, and the renaming of tensors (pattern to replacement).

        Raises CheckpointError for a config that no stock class computes.
        """

    @classmethod
    def load_tokenizer(cls, folder: Path) -> PreTrainedTokenizerBase | None:
        """The folder's tokenizer; None where it holds none. CheckpointError where its files are damaged."""
        return read_tokenizer(folder, cls.tokenizer_class)

    @classmethod
    def finish(cls, model: PreTrainedModel) -> PreTrainedModel:
        """Last touches to a model that was just loaded."""
        return model

    def with_facts(self, facts: ModelFacts) -> Self:
        """The same model, weights and execution shared, that says other facts of itself."""
        other = copy.copy(self)
        other.facts = facts
        return other

    # What a forward needs ----------------------------------------------------------------------

    def new_buffer(self, length: int) -> KVBuffer:
        """An empty KV buffer for canvases of that length; `execution.release` takes it back."""
        return self.execution.new_buffer(self.model.config.get_text_config().num_hidden_layers, length)

    def logits(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        buffer: KVBuffer | None,
        rows: Tensor,
    ) -> Tensor:
        """Logits `[batch, n, vocabulary]` at the places `rows` among the computed: `[n]`, or `[batch, n]`.

        Every forward passes here, compiled ones too, so a family may override it.
        """
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=buffer,
            use_cache=buffer is not None,
            logits_to_keep=rows,
        ).logits
        return logits

    def attention_mask(self, visible: Tensor, positions: Positions) -> Tensor:
        """The mask that the model's attention takes, from `visible`, bool `[batch, keys]`."""
        width = positions.width
        if self._flash:
            span = positions.span
            if width > 1 and (span is None or span.stop != visible.shape[1]):
                raise ConfigurationError(
                    "flash attention aligns its padding mask with the end of the canvas, so with padding "
                    "or a visible set it cannot compute a window in the middle: use "
                    "attn_implementation='sdpa', batch_size=1 or cache='prefix' or 'none'."
                )
            return visible
        mask = visible[:, None, None, :].expand(-1, 1, width, -1)
        if self.model.config._attn_implementation in _BOOLEAN_MASKS:
            return mask
        # Added to the scores: a boolean mask would be added as 1 and 0.
        dtype = self.model.dtype
        return torch.zeros((), dtype=dtype, device=mask.device).where(mask, torch.finfo(dtype).min)


def _drop_position_ids(model: PreTrainedModel) -> None:
    """Keep position ids from flash attention, which at batch 1 takes gaps in them for packed sequences.

    Rotary embeddings are computed before, so nothing else in the attention needs them.
    """

    def drop(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {k: v for k, v in kwargs.items() if k != "position_ids"}

    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_pre_hook(drop, with_kwargs=True)
