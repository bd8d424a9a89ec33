"""Remasking near the end of a block."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from dllm_sampling import Decision, DecodingState, Observation, Source, UnmaskingPolicy, top_k


class ReMDM(UnmaskingPolicy):
    """Fill a block up to a share, then mask and commit again its least sure positions, then finish it.

    In the loop, each step masks the `number` positions that were committed with the least confidence
    and commits as many of the best open ones.
    """

    name: ClassVar[str] = "remdm"
    rule: ClassVar[str] = (
        "once `start` of the block is committed, for `loops` steps: remask the r lowest, commit r."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "the LLaDA port of ReMDM",
            "guanghanwang/ReMDM-LLaDA, which counts `start` in steps; at one commit a step that is the "
            "same. Its sampler draws at temperature 1",
            arxiv="2503.00307",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("the confidence at commit", "remasking")
    k: int = Field(1, ge=1, description="Positions committed a step outside the loop.")
    number: int = Field(1, ge=1, description="Positions masked and committed again in each step of the loop.")
    start: float = Field(0.875, gt=0, lt=1, description="Share of the block at which the loop begins.")
    loops: int | None = Field(None, ge=0, description="Steps of the loop; none takes the block's length.")

    def idle_steps(self, targets: int) -> int:
        return targets if self.loops is None else targets * self.loops

    def select(self, state: DecodingState, observation: Observation) -> Decision:
        memory = state.memory(self)
        targets = (observation.masked | observation.committed).sum(1)
        if "done" not in memory:
            memory["done"] = torch.zeros_like(targets)
        # Steps of the loop that were begun in this block: its remasking stands at the end of a step.
        done = memory["done"].masked_fill(state.block_steps == 0, 0)
        loops = targets if self.loops is None else torch.full_like(targets, self.loops)
        inside = (done > 0) & (done <= loops)
        commit = top_k(
            observation.log_confidence, observation.eligible, torch.where(inside, self.number, self.k)
        )

        filled = targets - (observation.masked & ~commit).sum(1)
        reached = filled >= (targets * self.start).long().clamp_min(1)
        again = observation.masked.any(1) & (done < loops) & ((done > 0) | reached)
        memory["done"] = torch.where(again, done + 1, torch.where(done >= loops, loops + 1, done))
        stored = observation.positions.gather(state.committed_confidence)
        stored = torch.where(commit, observation.log_confidence.exp(), stored).nan_to_num(nan=2.0)
        taken = top_k(-stored, commit | observation.committed, again.long() * self.number)
        return Decision(commit & ~taken, remask=taken & observation.committed)
