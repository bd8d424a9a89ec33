"""For those who write strategies: conformance checks, models whose predictions are known, a counter.

`dllm_sampling.testing.data` has hypothesis strategies for logits and observations. The conformance
classes need pytest; both come with the extra `testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dllm_sampling.testing.chosen import ChosenModel, observe
from dllm_sampling.testing.sync import SyncCounter
from dllm_sampling.testing.tiny import tiny_model

if TYPE_CHECKING:
    from dllm_sampling.testing.backbone_conformance import BackboneConformance
    from dllm_sampling.testing.conformance import (
        BlockScheduleConformance,
        CachePolicyConformance,
        LogitsTransformConformance,
        ObserverConformance,
        PolicyConformance,
        ScoreConformance,
        UnmaskingPolicyConformance,
        WrapperConformance,
    )
    from dllm_sampling.testing.task_conformance import TaskConformance

__all__ = [
    "BackboneConformance",
    "BlockScheduleConformance",
    "CachePolicyConformance",
    "ChosenModel",
    "LogitsTransformConformance",
    "ObserverConformance",
    "PolicyConformance",
    "ScoreConformance",
    "SyncCounter",
    "TaskConformance",
    "UnmaskingPolicyConformance",
    "WrapperConformance",
    "observe",
    "tiny_model",
]


_SUITES = {"BackboneConformance": "backbone_conformance", "TaskConformance": "task_conformance"}


def __getattr__(name: str) -> Any:
    # pytest is needed by those who run the checks alone.
    if name in __all__:
        module = _SUITES.get(name, "conformance")
        return getattr(importlib.import_module(f"dllm_sampling.testing.{module}"), name)
    raise AttributeError(f"module 'dllm_sampling.testing' has no attribute {name!r}")
