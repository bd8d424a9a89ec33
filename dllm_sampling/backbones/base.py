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

    Args:
        model: The stock model.
        tokenizer: Its tokenizer, where it has one.
        compile: How forwards are run, see `backbones.execution`; "off" leaves the model as it is.

    Attributes:
        name: The family.
        shift: 1 where output i predicts position i + 1, else 0; no policy ever sees it.
        tokenizer_class: That of folders which hold vocab.json alone, where they name one of their own.
        keys: What config.json calls the stock config's sizes, for messages, where it has other names.
        model: The stock model.
        tokenizer: Its tokenizer, or None.
        facts: What policies may know of it.
        execution: How its forwards are run.
    """

    kind: ClassVar[str] = "backbone"
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
        """Whether a checkpoint is of this family.

        Args:
            config: What its config.json holds.

        Returns:
            True for one family alone.
        """

    @classmethod
    @abstractmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        """What transformers needs to load a checkpoint.

        Args:
            config: What its config.json holds.

        Returns:
            The stock class, its config, and the renaming of tensors (pattern to replacement).

        Raises:
            CheckpointError: No stock class computes what the config asks for.
        """

    @classmethod
    def load_tokenizer(cls, folder: Path) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a checkpoint.

        Args:
            folder: Its folder.

        Returns:
            The tokenizer, or None where the folder holds none.

        Raises:
            CheckpointError: Its files are damaged.
        """
        return read_tokenizer(folder, cls.tokenizer_class)

    @classmethod
    def finish(cls, model: PreTrainedModel) -> PreTrainedModel:
        """Put last touches to a model that was just loaded.

        Args:
            model: The stock model with its weights.

        Returns:
            The model that decodes.
        """
        return model

    def with_facts(self, facts: ModelFacts) -> Self:
        """The same model, weights and execution shared, that says other facts of itself.

        Args:
            facts: What policies may know of it from then on.

        Returns:
            Another backbone.
        """
        other = copy.copy(self)
        other.facts = facts
        return other

    # What a forward needs ----------------------------------------------------------------------

    def new_buffer(self, length: int) -> KVBuffer:
        """An empty KV buffer; `execution.release` takes it back.

        Args:
            length: Columns of the canvases that it is for.

        Returns:
            The buffer.
        """
        return self.execution.new_buffer(self.model.config.get_text_config().num_hidden_layers, length)

    def logits(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        buffer: KVBuffer | None,
        rows: Tensor,
    ) -> Tensor:
        """The stock model's logits.

        Every forward passes here, compiled ones too, so a family may override it.

        Args:
            ids: `[batch, width]` tokens.
            position_ids: `[batch, width]`.
            attention_mask: As `attention_mask` makes it; None where everything is seen.
            buffer: What keeps keys and values; None where nothing is kept.
            rows: `[n]` or `[batch, n]`, the places in the width whose logits are needed.

        Returns:
            `[batch, n, vocabulary]`.
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
        """The mask that the model's attention takes.

        Args:
            visible: Bool `[batch, keys]`, what may be attended to.
            positions: What is computed.

        Returns:
            As the attention implementation of the stock class wants it.

        Raises:
            ConfigurationError: Flash attention cannot compute this.
        """
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
