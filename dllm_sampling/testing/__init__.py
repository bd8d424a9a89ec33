"""For those who write strategies: a model with a chosen distribution, and a synchronisation counter."""

from __future__ import annotations

from dllm_sampling.testing.chosen import ChosenModel, observe
from dllm_sampling.testing.sync import SyncCounter

__all__ = ["ChosenModel", "SyncCounter", "observe"]
