"""Model families: checkpoints in their published format, on stock transformers classes."""

from __future__ import annotations

from dllm_sampling.backbones.base import Backbone

__all__ = ["Backbone", "register"]


def register() -> list[type[Backbone]]:
    """The families that ship; found through the same entry point as anyone's."""
    from dllm_sampling.backbones.dream import Dream
    from dllm_sampling.backbones.llada import LLaDA

    return [LLaDA, Dream]
