"""Fast-dLLM on Dream, as published."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from dllm_sampling import Decision, DecodingState, Observation, Region, Source, Wrapper


class FastDllmDream(Wrapper):
    """Commit the first open position of a block on its refresh, and nothing else there.

    The published caches for Dream recompute [s, e) only, whose outputs predict (s, e]: so s is committed
    from the refresh alone, whatever its confidence, and the position before the block is never
    recomputed. Without this wrapper the engine recomputes it and needs no exception.
    """

    name: ClassVar[str] = "fast_dllm_dream"
    rule: ClassVar[str] = "on the refresh of a block [s, e) commit s; afterwards the region is [s + 1, e)."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("Fast-dLLM's code for Dream", "and NVlabs/Fast-dLLM issues 20 and 61", arxiv="2505.22618"),
    )
    needs: ClassVar[tuple[str, ...]] = ("`wrap_plan_region` and `wrap_select`",)

    def wrap_plan_region(self, state: DecodingState) -> Generator[None, Region, Region]:
        region = yield
        memory, shared, span = state.memory(self), state.shared(self), region.span
        if region.starts_block:
            shared["start"] = span and span.start
            memory["start"] = region.positions.first(state.length)
            return region
        if span is not None and shared["start"] is not None:
            if span.start != shared["start"]:
                return region  # it has moved on
            if min(state.next_open) > span.start:
                return region.from_place(1)
        # Rows differ, or one was given no commit there: it keeps the first position in reach.
        open_still = region.positions.gather(state.masked)
        kept = open_still | (region.positions.columns != memory["start"])
        return replace(region, positions=region.positions.only(kept))

    def wrap_select(
        self, state: DecodingState, observation: Observation
    ) -> Generator[None, Tensor | Decision, Tensor | Decision]:
        chosen = yield
        if state.block_forwards > 0:
            return chosen
        return observation.masked & (observation.masked.cumsum(1) == 1)
