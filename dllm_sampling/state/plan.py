"""What one forward computes and sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.region import Region

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ForwardPlan:
    """The positions one forward recomputes, and what it may attend to.

    positions: a slice shared by the batch, or `[batch, width]` padded with -1.
    visible: `[batch, length]` bool, the positions attended to; None for the whole canvas. Padding, and
        what no forward has computed yet, is never visible.
    store: whether keys and values are kept; a plan that keeps none attends to what it computes alone.
    refresh: whether every visible position is computed, or bool `[batch]`, in which rows. True where
        `positions` is the whole canvas.
    """

    positions: slice | Tensor
    visible: Tensor | None = None
    store: bool = True
    refresh: bool | Tensor = False

    @classmethod
    def full(cls, state: DecodingState, *, store: bool = True) -> ForwardPlan:
        """Every position: a refresh."""
        return cls(slice(0, state.length), store=store, refresh=True)

    @classmethod
    def of(
        cls,
        mask: Tensor,
        width: int,
        *,
        visible: Tensor | None = None,
        store: bool = True,
        refresh: bool | Tensor = False,
    ) -> ForwardPlan:
        """The positions of a mask `[batch, length]`; `width` is the most that any row has."""
        # Stable, so that positions stay in order; the false ones come last.
        order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :width]
        return cls(order.masked_fill(~mask.gather(1, order), -1), visible, store, refresh)

    @classmethod
    def window(cls, state: DecodingState, region: Region, left: int, right: int | None) -> ForwardPlan:
        """The region with `left` columns before it and `right` after it (None: all there are)."""
        if region.span is not None:
            stop = state.length if right is None else min(region.span.stop + right, state.length)
            return cls(slice(max(region.span.start - left, 0), stop))
        inside, device = region.positions >= 0, state.columns.device
        first = region.positions.masked_fill(~inside, state.length).amin(1, keepdim=True)
        if right is None:
            columns = (first - left).clamp_min(0) + state.columns
            return cls(columns.where(columns < state.length, -1))
        before = first - left + torch.arange(left, device=device)
        after = region.positions.amax(1, keepdim=True) + 1 + torch.arange(right, device=device)
        around = torch.cat([before, after], 1)
        around = around.where((around >= 0) & (around < state.length) & inside.any(1, keepdim=True), -1)
        plan = cls(torch.cat([around[:, :left], region.positions, around[:, left:]], 1))
        return plan if plan.width <= state.length else cls.of(plan.mask(state), state.length)

    @property
    def width(self) -> int:
        """Positions computed in each canvas, padding included."""
        if isinstance(self.positions, slice):
            return int(self.positions.stop - self.positions.start)
        return self.positions.shape[1]

    def is_refresh(self, length: int) -> bool:
        """Whether every visible position of every row is computed."""
        if isinstance(self.positions, slice) and self.width == length:
            return True
        return self.refresh is True

    def refreshed(self, state: DecodingState) -> Tensor:
        """The rows of which every visible position is computed, bool `[batch]`."""
        if self.is_refresh(state.length):
            return torch.ones_like(state.row_steps).bool()
        # Of a row's own text, so that padding beside it does not count.
        seen = state.valid if self.visible is None else state.valid & self.visible
        if isinstance(self.positions, slice):
            left_out = seen[:, : self.positions.start].any(1) | seen[:, self.positions.stop :].any(1)
        else:
            left_out = (seen & ~self.mask(state)).any(1)
        whole = ~left_out
        return whole | self.refresh if isinstance(self.refresh, Tensor) else whole

    def mask(self, state: DecodingState) -> Tensor:
        """The planned positions as bool `[batch, length]`."""
        if isinstance(self.positions, slice):
            inside = (state.columns >= self.positions.start) & (state.columns < self.positions.stop)
            spread: Tensor = inside.expand(state.batch, -1)
            return spread
        return state.placed(torch.zeros_like(state.valid), self.positions, True)
