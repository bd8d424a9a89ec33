"""Dilated unmasking."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Region, UnmaskingPolicy, log_of


class Dilated(UnmaskingPolicy):
    """Commit a block in about log2 of its length rounds, positions far apart first.

    The rounds are fixed by position alone: strides B/base, B/base^2, ..., 1. Members of a round less
    confident than `skip` wait for the next one; the last round commits whatever is left. A round may
    commit nothing. Needs the region's geometry, the row's clock in the block, the confidences.
    Rule: in round r commit {k : k mod s_r = 0 and c_k >= skip} with s_r = floor(s_{r-1} / base); a last
    round smaller than the one before is merged into it.
    Source: DUS (arXiv:2506.19037) and its code, which never comes back to what it skipped and leaves
    masks in the text; here it is tried again, as the method asks.
    """

    name: ClassVar[str] = "dilated"
    base: int = Field(2, ge=2, description="Ratio of the strides of two rounds.")
    skip: float = Field(0.3, ge=0, le=1, description="Least confidence of a position to commit in its round.")

    def idle_steps(self, targets: int) -> int:
        return targets

    def block_started(self, state: DecodingState, region: Region) -> None:
        rounds = dilated_rounds(region.positions.shape[1], self.base)
        round_of = {k: number for number, members in enumerate(rounds) for k in members}
        memory = state.memory(self)
        memory["round"] = state.on_device([round_of[k] for k in sorted(round_of)]).expand(state.batch, -1)
        memory["last"] = len(rounds) - 1

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        memory, clock = state.memory(self), state.block_steps[:, None]
        sure = observation.log_confidence >= log_of(self.skip)
        due: Tensor = memory["round"] <= clock
        last: Tensor = clock >= memory["last"]
        return (due & sure) | last


def dilated_rounds(length: int, base: int) -> list[list[int]]:
    """The places of a block of `length` in the order of the rounds."""
    rounds: list[list[int]] = []
    left, stride = set(range(length)), length // base
    while left:
        members = [k for k in sorted(left) if stride <= 1 or k % stride == 0]
        left -= set(members)
        if members:
            rounds.append(members)
        stride //= base
    if len(rounds) > 1 and len(rounds[-1]) < len(rounds[-2]):
        rounds[-2:] = [rounds[-2] + rounds[-1]]
    return rounds
