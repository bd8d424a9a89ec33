"""Decode masked diffusion language models; every choice is a plugin."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded when first asked for, so that `dllm-sampling --help` does not import torch.
_PUBLIC = {
    "Backbone": "backbones",
    "BlockSchedule": "policies",
    "CachePolicy": "policies",
    "CheckpointError": "errors",
    "ConfigurationError": "errors",
    "Decision": "state",
    "DecodingError": "errors",
    "DecodingState": "state",
    "DllmSamplingError": "errors",
    "ForwardPlan": "state",
    "Example": "tasks",
    "GenerationResult": "result",
    "LogitsTransform": "policies",
    "ModelFacts": "state",
    "NestedBlockSchedule": "policies",
    "NestedCachePolicy": "policies",
    "NestedUnmaskingPolicy": "policies",
    "Observation": "observation",
    "Observer": "policies",
    "PluginError": "errors",
    "PluginWarning": "errors",
    "PromptError": "errors",
    "Region": "state",
    "Run": "engine",
    "RunConfig": "config",
    "Sampler": "engine",
    "SamplerSettings": "settings",
    "Sampling": "observation",
    "Step": "engine",
    "Study": "study",
    "StudyError": "errors",
    "Task": "tasks",
    "UnmaskingPolicy": "policies",
    "Wrapper": "policies",
    "in_order": "selection",
    "largest": "selection",
    "load_model": "backbones",
    "log_of": "selection",
    "or_the_best": "selection",
    "realigned": "selection",
    "registry": "plugins",
    "top_k": "selection",
}

if TYPE_CHECKING:
    from dllm_sampling.backbones import Backbone, load_model
    from dllm_sampling.config import RunConfig
    from dllm_sampling.engine import Run, Sampler, Step
    from dllm_sampling.errors import (
        CheckpointError,
        ConfigurationError,
        DecodingError,
        DllmSamplingError,
        PluginError,
        PluginWarning,
        PromptError,
        StudyError,
    )
    from dllm_sampling.observation import Observation, Sampling
    from dllm_sampling.plugins import registry
    from dllm_sampling.policies import (
        BlockSchedule,
        CachePolicy,
        LogitsTransform,
        NestedBlockSchedule,
        NestedCachePolicy,
        NestedUnmaskingPolicy,
        Observer,
        UnmaskingPolicy,
        Wrapper,
    )
    from dllm_sampling.result import GenerationResult
    from dllm_sampling.selection import in_order, largest, log_of, or_the_best, realigned, top_k
    from dllm_sampling.settings import SamplerSettings
    from dllm_sampling.state import Decision, DecodingState, ForwardPlan, ModelFacts, Region
    from dllm_sampling.study import Study
    from dllm_sampling.tasks import Example, Task

__all__ = [
    "Backbone", "BlockSchedule", "CachePolicy", "CheckpointError", "ConfigurationError", "Decision",
    "DecodingError", "DecodingState", "DllmSamplingError", "Example", "ForwardPlan", "GenerationResult",
    "LogitsTransform", "ModelFacts", "NestedBlockSchedule", "NestedCachePolicy",
    "NestedUnmaskingPolicy", "Observation", "Observer", "PluginError", "PluginWarning", "PromptError",
    "Region", "Run", "RunConfig", "Sampler", "SamplerSettings", "Sampling", "Step", "Study",
    "StudyError", "Task", "UnmaskingPolicy", "Wrapper", "in_order", "largest", "load_model", "log_of",
    "or_the_best", "realigned", "registry", "top_k",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"dllm_sampling.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'dllm_sampling' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
