"""Decode masked diffusion language models; every choice is a plugin."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded when first asked for, so that `dllm-sampling --help` does not import torch.
_PUBLIC = {
    "Backbone": "backbones",
    "BlockSchedule": "policies.kinds",
    "CachePolicy": "policies.kinds",
    "CheckpointError": "errors",
    "ConfigurationError": "errors",
    "Decision": "state.decision",
    "DecodingError": "errors",
    "DecodingState": "state.decoding_state",
    "DllmSamplingError": "errors",
    "ForwardPlan": "state.plan",
    "Example": "tasks",
    "GenerationResult": "state.result",
    "LogitsTransform": "policies.kinds",
    "ModelFacts": "state.facts",
    "NestedBlockSchedule": "plugins.nested",
    "NestedCachePolicy": "plugins.nested",
    "NestedScore": "plugins.nested",
    "NestedUnmaskingPolicy": "plugins.nested",
    "Observation": "state.observation",
    "Observer": "policies.kinds",
    "PluginError": "errors",
    "Positions": "state.positions",
    "PluginWarning": "errors",
    "PromptError": "errors",
    "Region": "state.region",
    "Run": "engine.run",
    "RunConfig": "config.run_config",
    "Sampler": "engine.sampler",
    "SamplerSettings": "config.sampler_settings",
    "Sampling": "state.sampling",
    "Score": "policies.kinds",
    "Source": "policies.source",
    "Step": "engine.step",
    "Study": "study",
    "StudyError": "errors",
    "Task": "tasks",
    "UnmaskingPolicy": "policies.kinds",
    "Wrapper": "policies.kinds",
    "for_transformers": "integrations.transformers_generate",
    "in_order": "policies.selection",
    "largest": "policies.selection",
    "load_model": "loading",
    "log_of": "policies.selection",
    "or_the_best": "policies.selection",
    "realigned": "policies.selection",
    "registry": "plugins",
    "reranked": "policies.selection",
    "top_k": "policies.selection",
}

if TYPE_CHECKING:
    from dllm_sampling.backbones import Backbone
    from dllm_sampling.config.run_config import RunConfig
    from dllm_sampling.config.sampler_settings import SamplerSettings
    from dllm_sampling.engine.run import Run
    from dllm_sampling.engine.sampler import Sampler
    from dllm_sampling.engine.step import Step
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
    from dllm_sampling.integrations.transformers_generate import for_transformers
    from dllm_sampling.loading.checkpoint import load_model
    from dllm_sampling.plugins.discovery import registry
    from dllm_sampling.plugins.nested import (
        NestedBlockSchedule,
        NestedCachePolicy,
        NestedScore,
        NestedUnmaskingPolicy,
    )
    from dllm_sampling.policies.kinds import (
        BlockSchedule,
        CachePolicy,
        LogitsTransform,
        Observer,
        Score,
        UnmaskingPolicy,
        Wrapper,
    )
    from dllm_sampling.policies.selection import (
        in_order,
        largest,
        log_of,
        or_the_best,
        realigned,
        reranked,
        top_k,
    )
    from dllm_sampling.policies.source import Source
    from dllm_sampling.state.decision import Decision
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.facts import ModelFacts
    from dllm_sampling.state.observation import Observation
    from dllm_sampling.state.plan import ForwardPlan
    from dllm_sampling.state.positions import Positions
    from dllm_sampling.state.region import Region
    from dllm_sampling.state.result import GenerationResult
    from dllm_sampling.state.sampling import Sampling
    from dllm_sampling.study import Study
    from dllm_sampling.tasks import Example, Task

__all__ = [
    "Backbone", "BlockSchedule", "CachePolicy", "CheckpointError", "ConfigurationError", "Decision",
    "DecodingError", "DecodingState", "DllmSamplingError", "Example", "ForwardPlan", "GenerationResult",
    "LogitsTransform", "ModelFacts", "NestedBlockSchedule", "NestedCachePolicy", "NestedScore",
    "NestedUnmaskingPolicy", "Observation", "Observer", "PluginError", "PluginWarning", "Positions",
    "PromptError", "Region", "Run", "RunConfig", "Sampler", "SamplerSettings", "Sampling", "Score",
    "Source", "Step", "Study", "StudyError", "Task", "UnmaskingPolicy", "Wrapper", "for_transformers",
    "in_order", "largest", "load_model", "log_of", "or_the_best", "realigned", "registry", "reranked",
    "top_k",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"dllm_sampling.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'dllm_sampling' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
