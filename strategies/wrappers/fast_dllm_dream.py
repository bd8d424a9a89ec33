"""Fast-dLLM on Dream, as published."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from dllm_sampling import Decision, DecodingState, Observation, Region, Wrapper


class FastDllmDream(Wrapper):
    """Commit the first open position of a block on its refresh, and nothing else there.

    The published caches for Dream recompute [s, e) only, whose outputs predict (s, e]: so s is committed
    from the refresh alone, whatever its confidence, and the position before the block is never
    recomputed. Without this wrapper the engine recomputes it and needs no exception.
    Needs `wrap_plan_region` and `wrap_select`.
    Rule: on the refresh of a block [s, e) commit s; afterwards the region is [s + 1, e).
    Source: Fast-dLLM's code for Dream (arXiv:2505.22618); NVlabs/Fast-dLLM issues 20 and 61.
    """

    name: ClassVar[str] = "fast_dllm_dream"

    def wrap_plan_region(self, state: DecodingState) -> Generator[None, Region, Region]:
        region = yield
        memory, span, positions = state.memory(self), region.span, region.positions
        if region.starts_block:
            memory["span"] = span and span.start
            memory["start"] = positions.masked_fill(positions < 0, state.length).amin(1, keepdim=True)
            return region
        if span is not None and memory["span"] is not None:
            if span.start != memory["span"]:
                return region  # it has moved on
            if min(state.next_open) > span.start:
                return Region(positions[:, 1:], region.blocks[:, 1:], slice(span.start + 1, span.stop))
        # Rows differ, or one was given no commit there: it keeps the first position in reach.
        done = (positions == memory["start"]) & ~state.gather(state.masked, positions)
        return replace(region, positions=positions.masked_fill(done, -1), span=None)

    def wrap_select(
        self, state: DecodingState, observation: Observation
    ) -> Generator[None, Tensor | Decision, Tensor | Decision]:
        chosen = yield
        if state.block_forwards > 0:
            return chosen
        return observation.masked & (observation.masked.cumsum(1) == 1)
