"""Rotary embeddings in float32 for a model in lower precision, as LLaDA's own code computes them.

Stock transformers rounds cosine and sine to the model's dtype before it rotates. Here they stay in
float32, so that queries and keys are rotated in float32, and an attention implementation rounds them
to the dtype of the values afterwards. No model code is replaced: a hook on the rotary module and a
registered attention function do it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

SUFFIX = "_rope32"


def keep_rotation_in_float32(model: PreTrainedModel) -> None:
    """Make `model` rotate in float32. Does nothing to a float32 model."""
    if model.dtype == torch.float32:
        return
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            module.register_forward_pre_hook(_in_float32)
    implementation = model.config._attn_implementation
    if "flash" not in implementation:  # transformers' flash attention rounds its inputs itself
        model.set_attn_implementation(_rounding(implementation))


def _in_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # The module reads only dtype and device of its first argument.
    return (args[0].new_empty((), dtype=torch.float32), *args[1:])


def _rounding(implementation: str) -> str:
    """The name of an attention implementation that rounds queries and keys to the values' dtype."""
    name = implementation + SUFFIX
    if name not in ALL_ATTENTION_FUNCTIONS:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)

        def rounded(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            return attend(module, query.to(value.dtype), key.to(value.dtype), value, *args, **kwargs)

        AttentionInterface.register(name, rounded)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name
