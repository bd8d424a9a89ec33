"""The positions that may be written or read now."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_sampling.state.decoding_state import DecodingState

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Region:
    """The positions that may be written or read now.

    positions: `[batch, width]`, canvas columns, padded with -1.
    blocks: `[batch, width]`, the block of each position; the progress guard prefers the lowest.
    span: the same columns as a slice, where all rows share them (the fast path).
    starts_block: whether this is the first forward of a block.
    """

    positions: Tensor
    blocks: Tensor
    span: slice | None = None
    starts_block: bool = False

    @classmethod
    def between(
        cls, state: DecodingState, start: int, stop: int, *, block: int = 0, starts_block: bool = False
    ) -> Region:
        """The columns `[start, stop)` for every row, all of one block."""
        positions = state.columns[start:stop].expand(state.batch, -1)
        blocks = torch.full_like(positions, block)
        return cls(positions, blocks, slice(start, stop), starts_block)

    def clipped(self, state: DecodingState) -> Region:
        """The same region without what lies behind each row's own last target.

        So a row's region does not depend on how far the canvases beside it reach.
        """
        ends, span = state.row_ends, self.span
        if span is None:
            if min(ends) == state.length:
                return self
        elif min(ends) >= span.stop:
            return self
        elif len(set(ends)) == 1:
            stop = ends[0] - span.start
            short = slice(span.start, ends[0])
            return replace(self, positions=self.positions[:, :stop], blocks=self.blocks[:, :stop], span=short)
        inside = self.positions < state.end_of_targets[:, None]
        return replace(self, positions=self.positions.where(inside, -1), span=None)
