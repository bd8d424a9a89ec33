"""The other plugin that ships with the engine: cache policies."""

from __future__ import annotations

from dllm_sampling.caches.commit_refresh import CommitRefresh
from dllm_sampling.caches.delayed import Delayed
from dllm_sampling.caches.dual import DualCache
from dllm_sampling.caches.entropy_refresh import EntropyRefresh
from dllm_sampling.caches.interval import IntervalRefresh
from dllm_sampling.caches.none import NoCache
from dllm_sampling.caches.prefix import PrefixCache
from dllm_sampling.caches.suffix_window import SuffixWindow
from dllm_sampling.caches.trailing import Trailing
from dllm_sampling.caches.warmup import WarmUp
from dllm_sampling.caches.windowed import Windowed

from dllm_sampling import CachePolicy

__all__ = [
    "CommitRefresh",
    "Delayed",
    "DualCache",
    "EntropyRefresh",
    "IntervalRefresh",
    "NoCache",
    "PrefixCache",
    "SuffixWindow",
    "Trailing",
    "WarmUp",
    "Windowed",
]


def register_cache_policies() -> list[type[CachePolicy]]:
    """Cache policies."""
    return [
        CommitRefresh, Delayed, DualCache, EntropyRefresh, IntervalRefresh, NoCache, PrefixCache,
        SuffixWindow, Trailing, WarmUp, Windowed,
    ]  # fmt: skip
