"""What a plugin module may define to be found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sampling.policies.run_spec import hookspec

if TYPE_CHECKING:
    from dllm_sampling.backbones import Backbone
    from dllm_sampling.policies.kinds import (
        BlockSchedule,
        CachePolicy,
        LogitsTransform,
        Observer,
        Score,
        UnmaskingPolicy,
        Wrapper,
    )
    from dllm_sampling.tasks import Task


class DiscoverySpec:
    """Functions that a plugin module may define. Each returns the classes it offers.

    A plugin may state the hook version it was written for as a module variable, `HOOK_VERSION = 1`.
    """

    @hookspec
    def register_unmasking_policies(self) -> list[type[UnmaskingPolicy]]:
        """Unmasking policies."""
        raise NotImplementedError

    @hookspec
    def register_scores(self) -> list[type[Score]]:
        """Scores, which rules rank by."""
        raise NotImplementedError

    @hookspec
    def register_cache_policies(self) -> list[type[CachePolicy]]:
        """Cache policies."""
        raise NotImplementedError

    @hookspec
    def register_block_schedules(self) -> list[type[BlockSchedule]]:
        """Block schedules."""
        raise NotImplementedError

    @hookspec
    def register_logits_transforms(self) -> list[type[LogitsTransform]]:
        """Logits transforms."""
        raise NotImplementedError

    @hookspec
    def register_wrappers(self) -> list[type[Wrapper]]:
        """Wrappers."""
        raise NotImplementedError

    @hookspec
    def register_observers(self) -> list[type[Observer]]:
        """Observers."""
        raise NotImplementedError

    @hookspec
    def register_backbones(self) -> list[type[Backbone]]:
        """Model families."""
        raise NotImplementedError

    @hookspec
    def register_tasks(self) -> list[type[Task]]:
        """Tasks with a checker."""
        raise NotImplementedError
