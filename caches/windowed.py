"""A window around the region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field

from dllm_sampling import (
    CachePolicy,
    Decision,
    DecodingState,
    ForwardPlan,
    ModelFacts,
    Observation,
    Region,
    Source,
)


class Windowed(CachePolicy):
    """Recompute the region with some positions on both sides; refresh by blocks, forwards or commits.

    The window's start also goes back to `delay` positions before the last one, so that what the region
    has just left is computed once more with its tokens. Refreshes by forwards count from the block's
    start; refreshes by commits are each row's own, and only that row's entries change.
    """

    name: ClassVar[str] = "windowed"
    rule: ClassVar[str] = (
        "[min(s - left, s' - delay), e + right) for the region [s, e), s' its start one forward ago."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("dInfer's vicinity refresh", "with left 16, right 16", arxiv="2510.08666"),
        Source("DSB-cache", "with left 24, right 0, delay 0, commits 32", arxiv="2602.05992"),
        Source("DCD", "with left 0, right 2, delay 2, commits 32, prompt false", arxiv="2601.02076"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "stored keys and values",
        "with `commits`, counts carried by the read-back",
    )
    exact_with: ClassVar[Mapping[str, object]] = {"interval": 1}
    left: int = Field(16, ge=0, description="Positions before the region.")
    right: int | None = Field(16, ge=0, description="Positions after it; none for all there are.")
    delay: int | None = Field(None, ge=0, description="Positions before the region's last start.")
    prompt: bool = Field(True, description="Whether the window may reach into what precedes the targets.")
    warmup: int = Field(0, ge=0, description="A row's first forwards of a run, all refreshes.")
    blocks: bool = Field(True, description="Refresh at the start of a block.")
    interval: int | None = Field(None, ge=1, description="Refresh after so many forwards.")
    commits: int | None = Field(None, ge=1, description="Refresh after so many commits.")

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        memory, reach = state.memory(self), state.end_of_targets - state.first_target
        memory["commits"] = torch.zeros_like(state.row_steps)
        state.shared(self)["gaps"] = bool((state.targets.sum(1) < reach).any())

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        memory, window = state.memory(self), self._window(state, region)
        due = [self._due(*counts) for counts in state.carried(self) or []]
        every = self._refreshes_all(state, region) or (bool(due) and all(due))
        if not every and not any(due):
            return window
        rows = torch.ones_like(state.row_steps).bool() if every else state.on_device(due).bool()
        # A row that waits for others is computed, but nothing of it is kept: its refresh is still due.
        works = region.positions.gather(state.masked, fill=False).any(1)
        memory["commits"] = memory["commits"].masked_fill(rows & works, 0)
        if every:
            return ForwardPlan.full(state)
        return ForwardPlan.of(window.mask(state) | rows[:, None], state.length, refresh=rows)

    def _due(self, commits: int, steps: int) -> bool:
        return steps < self.warmup or (self.commits is not None and commits >= self.commits)

    def _refreshes_all(self, state: DecodingState, region: Region) -> bool:
        if state.forward_index == 0 or (self.blocks and region.starts_block):
            return True
        # Counted in forwards of the block: a row's refreshes must not depend on another's commits.
        return self.interval is not None and state.block_forwards % self.interval == 0

    def _window(self, state: DecodingState, region: Region) -> ForwardPlan:
        if self.delay is None and self.prompt:
            return ForwardPlan.window(state, region, self.left, self.right)
        memory, shared, width = state.memory(self), state.shared(self), region.width
        start = region.positions.first(state.length)
        before, memory["start"] = memory.get("start", start), start
        longest, shared["width"] = max(width, shared.get("width", width)), width
        low, back = start - self.left, self.left
        if self.delay is not None:
            # A region's start is no further back than it was long, but for given text between targets.
            back = state.length if shared["gaps"] else max(back, longest + self.delay)
            low = low.minimum(before - self.delay).maximum(start - back)
        if not self.prompt:
            low = low.clamp_min(state.first_target)
        right = state.length if self.right is None else self.right
        last = region.positions.end() - 1
        near = (state.columns >= low) & (state.columns < start)
        near = near | ((state.columns > last) & (state.columns <= last + right))
        inside = region.positions.put(near, True)
        return ForwardPlan.of(inside, min(state.length, width + back + right))

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        if self.commits is not None or self.warmup:
            memory = state.memory(self)
            memory["commits"] = memory["commits"] + decision.commit.sum(1)
            state.carry(self, torch.stack([memory["commits"], state.row_steps], 1))
