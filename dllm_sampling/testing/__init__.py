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

__all__ = [
    "BlockScheduleConformance",
    "CachePolicyConformance",
    "ChosenModel",
    "LogitsTransformConformance",
    "ObserverConformance",
    "PolicyConformance",
    "ScoreConformance",
    "SyncCounter",
    "UnmaskingPolicyConformance",
    "WrapperConformance",
    "observe",
    "tiny_model",
]


def __getattr__(name: str) -> Any:
    # pytest is needed by those who run the checks alone.
    if name in __all__:
        return getattr(importlib.import_module("dllm_sampling.testing.conformance"), name)
    raise AttributeError(f"module 'dllm_sampling.testing' has no attribute {name!r}")
