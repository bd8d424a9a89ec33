"""Delayed caching of decoded tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from dllm_sampling import CachePolicy, Decision, DecodingState, ForwardPlan, Observation, Region, Source


class Delayed(CachePolicy):
    """Reuse the keys and values of tokens, from the second forward after their commit on.

    Every forward computes all open targets of the canvas, in later blocks too, and what was written in
    the step before, once more as the token that it has become. The first two forwards of a block and
    every `interval`-th are refreshes; interval 1 recomputes everything, as `none` does.
    """

    name: ClassVar[str] = "delayed"
    rule: ClassVar[str] = (
        "recompute {i : i was not a token one forward ago}; all of it when i mod N = 0 or i <= 1."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("dKV-Cache-Decode", "and its code for LLaDA", arxiv="2505.15781"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "stored keys and values",
        "positions that differ from row to row",
        "counts carried by the read-back",
    )
    exact_with: ClassVar[Mapping[str, object]] = {"interval": 1}
    interval: int = Field(8, ge=1, description="Forwards of a block from one refresh to the next; N.")

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        counts = state.carried(self)
        i = state.block_forwards
        if counts is None or region.starts_block or i <= 1 or i % self.interval == 0:
            return ForwardPlan.full(state)
        return ForwardPlan.of(state.memory(self)["due"], max(count for (count,) in counts))

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        written = decision.commit
        for more in (decision.overwrite, decision.remask):
            written = written if more is None else written | more
        due = observation.positions.put(state.masked, True, written) & state.valid
        state.memory(self)["due"] = due
        state.carry(self, due.sum(1, keepdim=True))
