"""From a checkpoint, a folder or a hub id, to a backbone."""

from __future__ import annotations

from dllm_sampling.loading.checkpoint import load_model, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]
