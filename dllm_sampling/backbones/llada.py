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

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.rope import keep_rotation_in_float32
from dllm_sampling.errors import CheckpointError

# What the stock classes compute; a checkpoint that says otherwise is refused.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu",),
    "rope": (True,),
    "alibi": (False, None),
    "include_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False, None),
    "input_emb_norm": (False, None),
    "scale_logits": (False, None),
    "block_group_size": (1, None),
}
_NEEDED = ("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length", "rope_theta")

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
    """Row i predicts position i."""

    name: ClassVar[str] = "llada"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        return str(config.get("model_type", "")).lower() == "llada"

    @classmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        for key in _NEEDED:
            if config.get(key) is None:
                raise CheckpointError(f"config.json has no {key!r}.")
        for key, allowed in _REQUIRED.items():
            value = config.get(key, allowed[-1])
            if value not in allowed:
                raise CheckpointError(
                    f"config.json says {key}={value!r}, which no stock transformers class computes; "
                    f"supported: {allowed[0]!r}."
                )
        heads = config["n_heads"]
        kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
        settings: dict[str, Any] = {
            "vocab_size": config.get("embedding_size") or config["vocab_size"],
            "hidden_size": config["d_model"],
            "intermediate_size": config.get("mlp_hidden_size")
            or config.get("mlp_ratio", 4) * config["d_model"],
            "num_hidden_layers": config["n_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
            "max_position_embeddings": config["max_sequence_length"],
            "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
            "tie_word_embeddings": bool(config.get("weight_tying")),
            "attention_dropout": 0.0,
            "eos_token_id": config.get("eos_token_id"),
            "pad_token_id": config.get("pad_token_id"),
            "bos_token_id": None,
            "use_cache": False,
        }
        biased = bool(config.get("include_qkv_bias"))
        stock_config = Qwen2Config(**settings) if biased else LlamaConfig(**settings)
        stock_config.mask_token_id = config.get("mask_token_id")
        stock_config.rope_full_precision = config.get("rope_full_precision", True)
        return (Qwen2ForCausalLM if biased else LlamaForCausalLM), stock_config, RENAMING

    @classmethod
    def finish(cls, model: PreTrainedModel) -> PreTrainedModel:
        if model.config.rope_full_precision:
            keep_rotation_in_float32(model)
        return model
