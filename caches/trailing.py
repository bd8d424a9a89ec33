"""A window that trails behind a moving region."""

from __future__ import annotations

from typing import ClassVar

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


class Trailing(CachePolicy):
    """Recompute the region, and what it has just left once more with its tokens.

    Meant for the `sliding` schedule, with `commit_refresh` around it. The first forward of a block
    refreshes.
    """

    name: ClassVar[str] = "trailing"
    rule: ClassVar[str] = (
        "[min(s - left, s' - delay), e + right) for the region [s, e), s' its start one forward ago."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("DSB-cache", "with left 24, right 0, delay 0", arxiv="2602.05992"),
        Source(
            "DCD",
            "with left 0, right 2, delay 2, prompt false; both refresh after 32 commits",
            arxiv="2601.02076",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "stored keys and values",
        "where each row's region started one forward ago",
    )
    left: int = Field(24, ge=0, description="Positions before the region.")
    right: int | None = Field(0, ge=0, description="Positions after it; none for all there are.")
    delay: int = Field(0, ge=0, description="Positions before the region's last start.")
    prompt: bool = Field(True, description="Whether the window may reach into what precedes the targets.")

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        reach = state.end_of_targets - state.first_target
        state.shared(self)["gaps"] = bool((state.targets.sum(1) < reach).any())

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        if region.starts_block:
            return ForwardPlan.full(state)
        shared, width = state.shared(self), region.width
        start = region.positions.first(state.length)
        before = state.memory(self).get("start", start)
        # A region's start is no further back than it was long, but for given text between targets.
        reach = max(width, shared.get("width", width)) + self.delay
        back = state.length if shared["gaps"] else max(self.left, reach)
        low = (start - self.left).minimum(before - self.delay).maximum(start - back)
        if not self.prompt:
            low = low.clamp_min(state.first_target)
        right = state.length if self.right is None else self.right
        end = region.positions.end()
        near = (state.columns >= low) & (state.columns < start)
        near = near | ((state.columns >= end) & (state.columns < end + right))
        inside = region.positions.put(near, True)
        return ForwardPlan.of(inside, min(state.length, width + back + right))

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        positions = observation.positions
        state.memory(self)["start"] = positions.first(state.length)
        state.shared(self)["width"] = positions.width
