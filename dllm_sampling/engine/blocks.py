"""From region to region: where a block starts and ends."""

from __future__ import annotations

from dataclasses import replace

from dllm_sampling.engine.run_hooks import RunHooks
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.region import Region


class Blocks:
    """Asks the schedule for each region, and tells the policies of blocks that start and finish."""

    def __init__(self, hooks: RunHooks, state: DecodingState) -> None:
        self._hooks = hooks
        self._state = state
        self._last: Region | None = None

    def next_region(self) -> Region:
        """The region of the next step; the first one always starts a block."""
        region, last = self._hooks.plan_region(self._state).clipped(self._state), self._last
        if last is None and not region.starts_block:
            region = replace(region, starts_block=True)
        if region.starts_block:
            self.finish()
            self._state.begin_block()
            self._hooks.block_started(self._state, region)
        self._last = region
        return region

    def finish(self) -> None:
        """The last block is done, if there was one."""
        if self._last is not None:
            self._hooks.block_finished(self._state, self._last)
