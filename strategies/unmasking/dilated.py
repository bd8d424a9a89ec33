"""Dilated unmasking."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dllm_sampling import DecodingState, Observation, Region, Source, UnmaskingPolicy, log_of


class Dilated(UnmaskingPolicy):
    """Commit a block in about log2 of its length rounds, positions far apart first.

    The rounds are fixed by position alone: strides B/base, B/base^2, ..., 1. Members of a round less
    confident than `threshold` wait for the next one; the last round commits whatever is left. A round
    may commit nothing.
    """

    name: ClassVar[str] = "dilated"
    rule: ClassVar[str] = (
        "in round r commit {k : k mod s_r = 0 and c_k >= threshold}, s_r = floor(s_{r-1} / base); a last\n"
        "round smaller than the one before is merged into it."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source(
            "DUS",
            "and its code, which never comes back to what it skipped and leaves masks in the text; "
            "here it is tried again, as the method asks",
            arxiv="2506.19037",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "the region's geometry",
        "the row's clock in the block",
        "the confidences",
    )
    base: int = Field(2, ge=2, description="Ratio of the strides of two rounds.")
    threshold: float = Field(
        0.3, ge=0, le=1, description="Least confidence of a position to commit in its round."
    )

    def idle_steps(self, targets: int) -> int:
        return targets

    def block_started(self, state: DecodingState, region: Region) -> None:
        memory, inside = state.memory(self), region.positions.inside
        # A row's own length decides, which may be less than that of the rows beside it.
        length = inside.sum(1, keepdim=True).clamp_min(1)
        memory["start"] = region.positions.first(state.length)
        memory["length"], memory["round"] = length, dilated_rounds(length, inside.shape[1], self.base)

    def select(self, state: DecodingState, observation: Observation) -> Tensor:
        memory, clock = state.memory(self), state.block_steps[:, None]
        # Places behind the block, where a region goes on, repeat its pattern.
        place = (observation.positions.columns - memory["start"]) % memory["length"]
        due: Tensor = memory["round"].gather(1, place) <= clock
        last: Tensor = clock >= memory["round"].amax(1, keepdim=True)
        return (due & (observation.log_confidence >= log_of(self.threshold))) | last


def dilated_rounds(length: Tensor, width: int, base: int) -> Tensor:
    """The round of each place of blocks of `length [batch, 1]`, `[batch, width]`; -1 behind their ends."""
    place = torch.arange(width, device=length.device).expand(len(length), -1)
    left, stride = place < length, length // base
    rounds, number = torch.full_like(place, -1), torch.full_like(length, -1)
    before = now = torch.zeros_like(length)
    for _ in range(width.bit_length()):  # the stride is at most halved so often
        members = left & ((stride <= 1) | (place % stride.clamp_min(1) == 0))
        size = members.sum(1, keepdim=True)
        number = number + (size > 0)
        rounds = torch.where(members, number, rounds)
        before, now = torch.where(size > 0, now, before), torch.where(size > 0, size, now)
        left, stride = left & ~members, stride // base
    merged = (rounds == number) & (number > 0) & (now < before)
    return rounds - merged.long()
