"""The plugin that ships with the engine: unmasking policies, scores, schedules, transforms, wrappers."""

from __future__ import annotations

from typing import Any

# `import X as X` marks what others may import from here.
from dllm_sampling.strategies.schedules.adablock import AdaBlock as AdaBlock
from dllm_sampling.strategies.schedules.fixed_blocks import FixedBlocks as FixedBlocks
from dllm_sampling.strategies.schedules.multi_block import MultiBlock as MultiBlock
from dllm_sampling.strategies.schedules.sliding import Sliding as Sliding
from dllm_sampling.strategies.schedules.whole_canvas import WholeCanvas as WholeCanvas
from dllm_sampling.strategies.scores.confidence import Confidence as Confidence
from dllm_sampling.strategies.scores.entropy import Entropy as Entropy
from dllm_sampling.strategies.scores.left_to_right import LeftToRight as LeftToRight
from dllm_sampling.strategies.scores.margin import Margin as Margin
from dllm_sampling.strategies.scores.pc_sampler import PCSampler as PCSampler
from dllm_sampling.strategies.scores.random import Random as Random
from dllm_sampling.strategies.transforms.classifier_free_guidance import (
    ClassifierFreeGuidance as ClassifierFreeGuidance,
)
from dllm_sampling.strategies.transforms.credit import Credit as Credit
from dllm_sampling.strategies.transforms.suppress_tokens import SuppressTokens as SuppressTokens
from dllm_sampling.strategies.unmasking.confidence_threshold import ConfidenceThreshold as ConfidenceThreshold
from dllm_sampling.strategies.unmasking.dilated import Dilated as Dilated
from dllm_sampling.strategies.unmasking.dream_schedule import DreamSchedule as DreamSchedule
from dllm_sampling.strategies.unmasking.dynamic_threshold import DynamicThreshold as DynamicThreshold
from dllm_sampling.strategies.unmasking.early_commit import EarlyCommit as EarlyCommit
from dllm_sampling.strategies.unmasking.entropy_bound import EntropyBound as EntropyBound
from dllm_sampling.strategies.unmasking.entropy_threshold import EntropyThreshold as EntropyThreshold
from dllm_sampling.strategies.unmasking.factor import Factor as Factor
from dllm_sampling.strategies.unmasking.first_of import FirstOf as FirstOf
from dllm_sampling.strategies.unmasking.fixed_k import FixedK as FixedK
from dllm_sampling.strategies.unmasking.frechet import Frechet as Frechet
from dllm_sampling.strategies.unmasking.hierarchy import Hierarchy as Hierarchy
from dllm_sampling.strategies.unmasking.klass import Klass as Klass
from dllm_sampling.strategies.unmasking.local_leap import LocalLeap as LocalLeap
from dllm_sampling.strategies.unmasking.p2 import P2 as P2
from dllm_sampling.strategies.unmasking.remdm import ReMDM as ReMDM
from dllm_sampling.strategies.unmasking.saber import Saber as Saber
from dllm_sampling.strategies.unmasking.sched import SchED as SchED
from dllm_sampling.strategies.unmasking.union import Union as Union
from dllm_sampling.strategies.unmasking.with_budget import WithBudget as WithBudget
from dllm_sampling.strategies.wrappers.eos_guard import EosGuard as EosGuard
from dllm_sampling.strategies.wrappers.fast_dllm_dream import FastDllmDream as FastDllmDream

# What the defaults of a sampler and the README need.
ESSENTIAL: tuple[type[Any], ...] = (Confidence, ConfidenceThreshold, Factor, FixedBlocks, FixedK)


# Everything else that ships.
DEFAULT: tuple[type[Any], ...] = (
    AdaBlock, MultiBlock, Sliding, WholeCanvas, ClassifierFreeGuidance, Credit, SuppressTokens, Dilated,
    DreamSchedule, DynamicThreshold, EarlyCommit, Entropy, EntropyBound, EntropyThreshold, FirstOf, Frechet,
    Hierarchy, Klass, LeftToRight, LocalLeap, Margin, P2, PCSampler, Random, ReMDM, Saber, SchED, Union,
    WithBudget, EosGuard, FastDllmDream,
)  # fmt: skip


def register() -> list[type[Any]]:
    """All of them, found through the same entry-point group as a stranger's."""
    return [*ESSENTIAL, *DEFAULT]
