"""Fixed blocks, left to right."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from dllm_sampling import BlockSchedule, DecodingState, Region, Source


class FixedBlocks(BlockSchedule):
    """Work on blocks of `block_length`, counted from the first target, one after the other.

    All rows move together: a row whose block is done waits for the others. The last block is shorter
    where the length does not divide; blocks without targets are passed over.
    """

    name: ClassVar[str] = "fixed_blocks"
    rule: ClassVar[str] = (
        "[s, s + block_length) with s = first target + b block_length, for the first b that holds an open\n"
        "target of some row."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("LLaDA", "semi-autoregressive decoding", arxiv="2502.09992"),
    )
    needs: ClassVar[tuple[str, ...]] = ("each row's leftmost open target",)
    block_length: int = Field(32, ge=1, description="Positions in a block.")

    def plan_region(self, state: DecodingState) -> Region:
        block = (min(state.next_open) - state.first_target) // self.block_length
        shared = state.shared(self)
        starts = shared.get("block") != block
        shared["block"] = block
        start = state.first_target + block * self.block_length
        stop = min(start + self.block_length, state.length)
        return Region.between(state, start, stop, block=block, starts_block=starts)

    def plan_blocks(self, state: DecodingState) -> Tensor:
        targets = state.targets[:, state.first_target :].long()
        padding = -targets.shape[1] % self.block_length
        padded = targets.new_zeros(state.batch, targets.shape[1] + padding)
        padded[:, : targets.shape[1]] = targets
        return padded.view(state.batch, -1, self.block_length).sum(-1)
