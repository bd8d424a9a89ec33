"""The plugin that ships with the engine: unmasking policies, scores, schedules, transforms, wrappers."""

from __future__ import annotations

from dllm_sampling.strategies.schedules.adablock import AdaBlock
from dllm_sampling.strategies.schedules.fixed_blocks import FixedBlocks
from dllm_sampling.strategies.schedules.multi_block import MultiBlock
from dllm_sampling.strategies.schedules.sliding import Sliding
from dllm_sampling.strategies.schedules.whole_canvas import WholeCanvas
from dllm_sampling.strategies.scores.confidence import Confidence
from dllm_sampling.strategies.scores.entropy import Entropy
from dllm_sampling.strategies.scores.left_to_right import LeftToRight
from dllm_sampling.strategies.scores.margin import Margin
from dllm_sampling.strategies.scores.pc_sampler import PCSampler
from dllm_sampling.strategies.scores.random import Random
from dllm_sampling.strategies.transforms.classifier_free_guidance import ClassifierFreeGuidance
from dllm_sampling.strategies.transforms.credit import Credit
from dllm_sampling.strategies.transforms.suppress_tokens import SuppressTokens
from dllm_sampling.strategies.unmasking.confidence_threshold import ConfidenceThreshold
from dllm_sampling.strategies.unmasking.dilated import Dilated
from dllm_sampling.strategies.unmasking.dream_schedule import DreamSchedule
from dllm_sampling.strategies.unmasking.dynamic_threshold import DynamicThreshold
from dllm_sampling.strategies.unmasking.early_commit import EarlyCommit
from dllm_sampling.strategies.unmasking.entropy_bound import EntropyBound
from dllm_sampling.strategies.unmasking.entropy_threshold import EntropyThreshold
from dllm_sampling.strategies.unmasking.factor import Factor
from dllm_sampling.strategies.unmasking.first_of import FirstOf
from dllm_sampling.strategies.unmasking.fixed_k import FixedK
from dllm_sampling.strategies.unmasking.frechet import Frechet
from dllm_sampling.strategies.unmasking.hierarchy import Hierarchy
from dllm_sampling.strategies.unmasking.klass import Klass
from dllm_sampling.strategies.unmasking.local_leap import LocalLeap
from dllm_sampling.strategies.unmasking.p2 import P2
from dllm_sampling.strategies.unmasking.remdm import ReMDM
from dllm_sampling.strategies.unmasking.saber import Saber
from dllm_sampling.strategies.unmasking.sched import SchED
from dllm_sampling.strategies.unmasking.union import Union
from dllm_sampling.strategies.unmasking.with_budget import WithBudget
from dllm_sampling.strategies.wrappers.eos_guard import EosGuard
from dllm_sampling.strategies.wrappers.fast_dllm_dream import FastDllmDream

from dllm_sampling import BlockSchedule, LogitsTransform, Score, UnmaskingPolicy, Wrapper

_UNMASKING: list[type[UnmaskingPolicy]] = [
    ConfidenceThreshold, Dilated, DreamSchedule, DynamicThreshold, EarlyCommit, EntropyBound,
    EntropyThreshold, Factor, FirstOf, FixedK, Frechet, Hierarchy, Klass, LocalLeap, P2, ReMDM,
    Saber, SchED, Union, WithBudget,
]  # fmt: skip
_SCORES: list[type[Score]] = [Confidence, Entropy, LeftToRight, Margin, PCSampler, Random]
_SCHEDULES: list[type[BlockSchedule]] = [AdaBlock, FixedBlocks, MultiBlock, Sliding, WholeCanvas]
_TRANSFORMS: list[type[LogitsTransform]] = [ClassifierFreeGuidance, Credit, SuppressTokens]
_WRAPPERS: list[type[Wrapper]] = [EosGuard, FastDllmDream]

__all__ = [
    "P2",
    "AdaBlock",
    "ClassifierFreeGuidance",
    "Confidence",
    "ConfidenceThreshold",
    "Credit",
    "Dilated",
    "DreamSchedule",
    "DynamicThreshold",
    "EarlyCommit",
    "Entropy",
    "EntropyBound",
    "EntropyThreshold",
    "EosGuard",
    "Factor",
    "FastDllmDream",
    "FirstOf",
    "FixedBlocks",
    "FixedK",
    "Frechet",
    "Hierarchy",
    "Klass",
    "LeftToRight",
    "LocalLeap",
    "Margin",
    "MultiBlock",
    "PCSampler",
    "Random",
    "ReMDM",
    "Saber",
    "SchED",
    "Sliding",
    "SuppressTokens",
    "Union",
    "WholeCanvas",
    "WithBudget",
]


def register_unmasking_policies() -> list[type[UnmaskingPolicy]]:
    """Unmasking policies."""
    return _UNMASKING


def register_scores() -> list[type[Score]]:
    """Scores, which rules rank by."""
    return _SCORES


def register_block_schedules() -> list[type[BlockSchedule]]:
    """Block schedules."""
    return _SCHEDULES


def register_logits_transforms() -> list[type[LogitsTransform]]:
    """Logits transforms."""
    return _TRANSFORMS


def register_wrappers() -> list[type[Wrapper]]:
    """Wrappers."""
    return _WRAPPERS
