"""The plugin that ships with the engine: unmasking policies, block schedules, wrappers."""

from __future__ import annotations

from dllm_sampling.strategies.confidence_threshold import ConfidenceThreshold
from dllm_sampling.strategies.dream_schedule import DreamSchedule
from dllm_sampling.strategies.factor import Factor
from dllm_sampling.strategies.fixed_k import FixedK
from dllm_sampling.strategies.schedules.fixed_blocks import FixedBlocks
from dllm_sampling.strategies.schedules.whole_canvas import WholeCanvas
from dllm_sampling.strategies.wrappers.fast_dllm_dream import FastDllmDream

from dllm_sampling import BlockSchedule, UnmaskingPolicy, Wrapper

__all__ = [
    "ConfidenceThreshold",
    "DreamSchedule",
    "Factor",
    "FastDllmDream",
    "FixedBlocks",
    "FixedK",
    "WholeCanvas",
]


def register_unmasking_policies() -> list[type[UnmaskingPolicy]]:
    """Unmasking policies."""
    return [ConfidenceThreshold, DreamSchedule, Factor, FixedK]


def register_block_schedules() -> list[type[BlockSchedule]]:
    """Block schedules."""
    return [FixedBlocks, WholeCanvas]


def register_wrappers() -> list[type[Wrapper]]:
    """Wrappers."""
    return [FastDllmDream]
