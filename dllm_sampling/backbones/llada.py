"""LLaDA (arXiv:2502.09992; ML-GSAI's checkpoints) on stock Llama, or Qwen2 where qkv have biases.

Published checkpoint folders load unchanged. In bfloat16 queries and keys are rotated in float32, as
`rope_full_precision` asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dllm_sampling.backbones import published, special_ids
from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.rope import keep_rotation_in_float32

# What the stock classes compute; a checkpoint that says otherwise is refused. None: the key may be missing.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu",),
    "rope": (True,),
    "layer_norm_with_affine": (True, None),
    "alibi": (False, None),
    "include_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False, None),
    "input_emb_norm": (False, None),
    "scale_logits": (False, None),
    "block_group_size": (1, None),
    "is_causal": (False, None),
}
_HONOURED = {
    "d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "mlp_ratio", "vocab_size",
    "embedding_size", "max_sequence_length", "rms_norm_eps", "rope_full_precision", "weight_tying",
    "include_qkv_bias", "multi_query_attention", "mask_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
# How it was trained or run, and what belongs to settings that are refused above.
_HARMLESS = {
    "alibi_bias_max", "attention_layer_norm_with_affine", "embedding_dropout", "flash_attention",
    "init_cutoff_factor", "init_device", "init_fn", "init_std", "precision", "residual_dropout",
    "tie_word_embeddings",
}  # fmt: skip
_KNOWN = _HONOURED | _HARMLESS | _REQUIRED.keys() | published.rope_keys()
_ARCHITECTURES = ("LLaDAModelLM", "LLaDAModel", "LLaDAForCausalLM", "LLaDAForMaskedLM")

_BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
# Anchored: a block's `ff_out` is its down projection, the bare one is the LM head. One capture group
# each, which is all that transformers' renaming supports.
RENAMING = {
    rf"^model\.transformer\.blocks\.(\d+)\.{theirs}\.": rf"model.layers.\1.{ours}."
    for theirs, ours in _BLOCK.items()
} | {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
}


class LLaDA(Backbone):
    """The output at position i predicts position i."""

    name: ClassVar[str] = "llada"
    keys: ClassVar[Mapping[str, str]] = {
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_hidden_layers": "n_layers",
    }

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        return str(config.get("model_type", "")).lower() == "llada"

    @classmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        published.of_architecture(config, _ARCHITECTURES)
        for key, allowed in _REQUIRED.items():
            published.only(config, key, *allowed)
        published.refuse_unknown(config, _KNOWN)
        heads = published.heads(config, "d_model", "n_heads")
        one = published.flag(config, "multi_query_attention", False)
        vocab_size = embedded = published.size(config, "vocab_size")
        if config.get("embedding_size") is not None:
            embedded = published.size(config, "embedding_size")
            if embedded < vocab_size:
                raise published.refused("embedding_size", embedded, f"it is at least vocab_size={vocab_size}")
        if config.get("mlp_hidden_size") is not None:
            inner = published.size(config, "mlp_hidden_size")
        else:
            inner = int(published.number(config, "mlp_ratio", 4) * config["d_model"])
        settings: dict[str, Any] = {
            "vocab_size": embedded,
            "hidden_size": config["d_model"],
            "intermediate_size": inner,
            "num_hidden_layers": published.size(config, "n_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": published.kv_heads(config, "n_kv_heads", 1 if one else heads),
            "hidden_act": "silu",
            "rms_norm_eps": published.number(config, "rms_norm_eps", 1e-5),
            "max_position_embeddings": published.size(config, "max_sequence_length"),
            "rope_parameters": {"rope_type": "default", "rope_theta": published.rope_theta(config)},
            "tie_word_embeddings": published.flag(config, "weight_tying", False),
            "attention_dropout": 0.0,
            "eos_token_id": special_ids.end_ids(config, vocab_size) or None,
            "pad_token_id": special_ids.pad_id(config, vocab_size),
            "bos_token_id": None,
            "use_cache": False,
        }
        biased = published.flag(config, "include_qkv_bias", False)
        stock_config = Qwen2Config(**settings) if biased else LlamaConfig(**settings)
        stock_config.mask_token_id = special_ids.mask_id(config, vocab_size)
        # Rows beyond it are padding of the embedding.
        stock_config.written_vocab_size = vocab_size
        stock_config.rope_full_precision = published.flag(config, "rope_full_precision", True)
        return (Qwen2ForCausalLM if biased else LlamaForCausalLM), stock_config, RENAMING

    @classmethod
    def finish(cls, model: PreTrainedModel) -> PreTrainedModel:
        if model.config.rope_full_precision:
            keep_rotation_in_float32(model)
        return model
