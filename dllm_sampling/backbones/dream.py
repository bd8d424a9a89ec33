"""Dream (arXiv:2508.15487; the HKU NLP group's checkpoints) on stock Qwen2, its tensors' own names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.errors import CheckpointError

_NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rope_theta", "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip


class Dream(Backbone):
    """Row i predicts position i + 1: the training kept the shift of the model it started from."""

    name: ClassVar[str] = "dream"
    shift: ClassVar[int] = 1

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        return str(config.get("model_type", "")).lower() == "dream"

    @classmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        for key in _NEEDED:
            if config.get(key) is None:
                raise CheckpointError(f"config.json has no {key!r}.")
        for key in ("rope_scaling", "use_sliding_window"):
            if config.get(key):
                raise CheckpointError(f"config.json says {key}={config[key]!r}, which is not supported.")
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"config.json says hidden_act={config['hidden_act']!r}; supported: 'silu'.")
        settings = {key: config[key] for key in _NEEDED if key != "rope_theta"}
        stock_config = Qwen2Config(
            **settings,
            hidden_act="silu",
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            tie_word_embeddings=bool(config.get("tie_word_embeddings")),
            attention_dropout=0.0,
            use_sliding_window=False,
            eos_token_id=config.get("eos_token_id"),
            pad_token_id=config.get("pad_token_id"),
            bos_token_id=config.get("bos_token_id"),
            use_cache=False,
        )
        stock_config.mask_token_id = config.get("mask_token_id")
        return Qwen2ForCausalLM, stock_config, {}

    @classmethod
    def load_tokenizer(cls, folder: Path) -> PreTrainedTokenizerBase | None:
        # Published folders name a tokenizer class of their own, which is Qwen2's with other tokens.
        if (folder / "vocab.json").exists() and not (folder / "tokenizer.json").exists():
            return cast(PreTrainedTokenizerBase, Qwen2Tokenizer.from_pretrained(folder))
        return super().load_tokenizer(folder)
