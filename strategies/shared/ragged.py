"""Regions that differ from row to row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dllm_sampling import DecodingState, Positions, Region


def region_of_rows(
    state: DecodingState, starts: Sequence[int], ends: Sequence[int], block: int, starts_block: bool
) -> Region:
    """The columns [start, end) of each row; one span for all where they agree."""
    if len(set(starts)) == len(set(ends)) == 1:
        return Region.between(state, starts[0], ends[0], block=block, starts_block=starts_block)
    width = max(end - start for start, end in zip(starts, ends, strict=True))
    bounds = state.on_device([list(starts), list(ends)])[..., None]
    columns = bounds[0] + torch.arange(width, device=state.columns.device)
    positions = columns.where(columns < bounds[1], -1)
    return Region(Positions(positions), torch.full_like(positions, block), starts_block)
