"""Dream (arXiv:2508.15487; the HKU NLP group's checkpoints) on stock Qwen2, its tensors' own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from dllm_sampling.backbones import published, special_ids
from dllm_sampling.backbones.base import Backbone

# What the stock class computes; a checkpoint that says otherwise is refused. None: the key may be missing.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
    "attention_bias": (True, False, None),  # written by some, read by none: queries, keys, values have biases
    "mlp_bias": (False, None),
    "is_causal": (False, None),
}
_HONOURED = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "layer_types", "rms_norm_eps", "max_position_embeddings",
    "tie_word_embeddings", "mask_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
# These say where a sliding window would be, which is refused above.
_HARMLESS = {"max_window_layers", "sliding_window", "pretraining_tp"}
_KNOWN = _HONOURED | _HARMLESS | _REQUIRED.keys() | published.rope_keys()
_ARCHITECTURES = (
    "DreamModel",
    "DreamBaseModel",
    "DreamForCausalLM",
    "DreamForMaskedLM",
    "DreamModelForCausalLM",
)


class Dream(Backbone):
    """The output at position i predicts position i + 1: the shift of the model that training started from."""

    name: ClassVar[str] = "dream"
    shift: ClassVar[int] = 1
    # Published folders name a tokenizer class of their own, which is Qwen2's with other tokens.
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase] | None] = Qwen2Tokenizer

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        return str(config.get("model_type", "")).lower() == "dream"

    @classmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        published.of_architecture(config, _ARCHITECTURES)
        for key, allowed in _REQUIRED.items():
            published.only(config, key, *allowed)
        published.refuse_unknown(config, _KNOWN)
        heads = published.heads(config, "hidden_size", "num_attention_heads")
        width, vocab_size = config["hidden_size"], published.size(config, "vocab_size")
        layers = published.size(config, "num_hidden_layers")
        published.only(config, "head_dim", width // heads, None)
        kinds = config.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}):
            raise published.refused("layer_types", kinds, "only 'full_attention' is supported")
        published.size(config, "num_key_value_heads")
        stock_config = Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=published.size(config, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=published.kv_heads(config, "num_key_value_heads", heads),
            hidden_act="silu",
            rms_norm_eps=published.number(config, "rms_norm_eps"),
            max_position_embeddings=published.size(config, "max_position_embeddings"),
            rope_parameters={"rope_type": "default", "rope_theta": published.rope_theta(config)},
            tie_word_embeddings=published.flag(config, "tie_word_embeddings", False),
            attention_dropout=0.0,
            use_sliding_window=False,
            eos_token_id=special_ids.end_ids(config, vocab_size) or None,
            pad_token_id=special_ids.pad_id(config, vocab_size),
            bos_token_id=None,
            use_cache=False,
        )
        stock_config.mask_token_id = special_ids.mask_id(config, vocab_size)
        return Qwen2ForCausalLM, stock_config, {}
