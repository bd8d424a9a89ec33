"""The other plugin that ships with the engine: cache policies."""

from __future__ import annotations

from typing import Any

# `import X as X` marks what others may import from here.
from dllm_sampling.caches.commit_refresh import CommitRefresh as CommitRefresh
from dllm_sampling.caches.delayed import Delayed as Delayed
from dllm_sampling.caches.dual import DualCache as DualCache
from dllm_sampling.caches.entropy_refresh import EntropyRefresh as EntropyRefresh
from dllm_sampling.caches.interval import IntervalRefresh as IntervalRefresh
from dllm_sampling.caches.none import NoCache as NoCache
from dllm_sampling.caches.prefix import PrefixCache as PrefixCache
from dllm_sampling.caches.suffix_window import SuffixWindow as SuffixWindow
from dllm_sampling.caches.trailing import Trailing as Trailing
from dllm_sampling.caches.warmup import WarmUp as WarmUp
from dllm_sampling.caches.windowed import Windowed as Windowed

# What the defaults of a sampler and the README need.
ESSENTIAL: tuple[type[Any], ...] = (DualCache, NoCache)


# Everything else that ships.
DEFAULT: tuple[type[Any], ...] = (
    CommitRefresh, Delayed, EntropyRefresh, IntervalRefresh, PrefixCache, SuffixWindow, Trailing, WarmUp,
    Windowed,
)  # fmt: skip


def register() -> list[type[Any]]:
    """All of them, found through the same entry-point group as a stranger's."""
    return [*ESSENTIAL, *DEFAULT]
