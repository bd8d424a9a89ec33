"""Adaptive acceleration with backtracking."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from dllm_sampling import Decision, DecodingState, ModelFacts, Observation, Source, UnmaskingPolicy, top_k


class Saber(UnmaskingPolicy):
    """Commit what is surer than commits have been so far, and take back what has lost confidence.

    The threshold is the mean confidence at which the row's positions were committed; at least `least`
    positions are. Then some committed positions whose confidence fell most since the last forward (or
    rose least) are masked again.
    """

    name: ClassVar[str] = "saber"
    rule: ClassVar[str] = (
        "commit S = {c_i > mean F} or the top n; with m = max(n, |S|) remask the\n"
        "min(max(n // 2, ceil(m / remask_divisor)), m - 1) of least c_i(t) - c_i(t - 1)."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "Saber",
            "and its code for LLaDA, for one block; with several it remasks in earlier blocks too, "
            "here in the region",
            arxiv="2510.18165",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("predictions at committed positions", "remasking")
    least: int = Field(2, ge=1, description="Positions committed at least; n.")
    remask_divisor: int = Field(8, ge=1, description="Commits for each position taken back.")

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        memory = state.memory(self)
        memory["at_commit"] = torch.full_like(state.committed_confidence, torch.nan)
        memory["before"] = torch.zeros_like(state.committed_confidence)

    def select(self, state: DecodingState, observation: Observation) -> Decision:
        memory, positions = state.memory(self), observation.positions
        confidence, eligible = observation.log_confidence.exp(), observation.eligible
        mean = memory["at_commit"].nanmean(1, keepdim=True).nan_to_num(nan=1.0)
        sure = eligible & (confidence > mean)
        few = sure.sum(1, keepdim=True) < self.least
        commit = torch.where(few, top_k(confidence, eligible, self.least), sure)
        drop = confidence - positions.gather(memory["before"])
        memory["before"] = positions.put(memory["before"], confidence)
        memory["at_commit"] = positions.put(memory["at_commit"], confidence, commit)

        count = commit.sum(1).clamp_min(self.least)
        back = (-(-count // self.remask_divisor)).clamp_min(self.least // 2).minimum(count - 1)
        filled = (observation.masked & ~commit).sum(1) == 0  # nothing is taken back from a full block
        taken = top_k(-drop, commit | observation.committed, back.masked_fill(filled, 0))
        # What would be committed and masked in one step stays masked.
        return Decision(commit & ~taken, remask=taken & observation.committed)
