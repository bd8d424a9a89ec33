"""The other plugin that ships with the engine: cache policies."""

from __future__ import annotations

from dllm_sampling.caches.dual import DualCache
from dllm_sampling.caches.interval import IntervalRefresh
from dllm_sampling.caches.none import NoCache
from dllm_sampling.caches.prefix import PrefixCache

from dllm_sampling import CachePolicy

__all__ = ["DualCache", "IntervalRefresh", "NoCache", "PrefixCache"]


def register_cache_policies() -> list[type[CachePolicy]]:
    """Cache policies."""
    return [DualCache, IntervalRefresh, NoCache, PrefixCache]
