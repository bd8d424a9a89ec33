"""The positions that may be written or read now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_sampling.state.positions import Positions

if TYPE_CHECKING:
    from dllm_sampling.state.decoding_state import DecodingState


@dataclass(frozen=True, eq=False)
class Region:
    """The positions that may be written or read now.

    Attributes:
        positions: Which ones; a tensor `[batch, width]` of columns padded with -1 is taken for `Positions` of
            it.
        blocks: `[batch, width]`, the block of each position; the progress guard prefers the lowest.
        starts_block: Whether this is the first forward of a block.
    """

    positions: Positions
    blocks: Tensor
    starts_block: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.positions, Tensor):
            object.__setattr__(self, "positions", Positions(self.positions))

    @classmethod
    def between(
        cls, state: DecodingState, start: int, stop: int, *, block: int = 0, starts_block: bool = False
    ) -> Region:
        """The same columns for every row, all of one block.

        Args:
            state: The state of the run.
            start: The first column.
            stop: The column behind the last one.
            block: The number of the block.
            starts_block: Whether this is the first forward of a block.

        Returns:
            The region.
        """
        positions = Positions.between(state, start, stop)
        return cls(positions, torch.full_like(positions.columns, block), starts_block)

    @property
    def width(self) -> int:
        """Positions of a row, padding included."""
        return self.positions.width

    @property
    def span(self) -> slice | None:
        """The region as a slice, where all rows share it."""
        return self.positions.span

    def from_place(self, start: int, stop: int | None = None) -> Region:
        """The positions at some places of each row.

        Args:
            start: The first place.
            stop: The place behind the last one; None for all that follow.

        Returns:
            A region of the same blocks.
        """
        return replace(
            self, positions=self.positions.from_place(start, stop), blocks=self.blocks[:, start:stop]
        )

    def clipped(self, state: DecodingState) -> Region:
        """The same region without what lies behind each row's own last target.

        So a row's region does not depend on how far the canvases beside it reach.

        Args:
            state: The state of the run.

        Returns:
            A region of the same blocks.
        """
        if min(state.row_ends) == state.length:
            return self
        positions = self.positions.before(state.row_ends, state.end_of_targets)
        return replace(self, positions=positions, blocks=self.blocks[:, : positions.width])
