"""A small random transformer, for tests in which keys and values matter."""

from __future__ import annotations

import functools

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.llada import LLaDA

VOCABULARY = 64


@functools.cache
def tiny_model(seed: int = 0, sharpness: float = 8.0, vocabulary: int = VOCABULARY) -> Backbone:
    """A LLaDA of 2 layers and 64 tokens with random weights, the same for the same seed.

    The last id is the mask, the one before it ends a sequence.

    Args:
        seed: Of the weights.
        sharpness: The standard deviation of its logits, roughly.
        vocabulary: Ids that it has.

    Returns:
        The model, made once for each pair of arguments.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 2,
        use_cache=False,
    )
    config.is_causal = False
    config.mask_token_id = vocabulary - 1
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                scale = sharpness if "lm_head" in name else 1.0
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * scale / parameter.shape[-1] ** 0.5)
    return LLaDA(model)
