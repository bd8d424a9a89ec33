"""Canvas columns of every row of a batch: one slice that the rows share, or each row's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Canvas(Protocol):
    """What positions lie on; the decoding state is one."""

    @property
    def batch(self) -> int:
        """Rows."""

    @property
    def length(self) -> int:
        """Columns."""

    @property
    def columns(self) -> Tensor:
        """`[length]`, the number of each column."""


@dataclass(frozen=True, eq=False)
class Positions:
    """Columns of the canvas, `width` for each row.

    columns: `[batch, width]`, -1 where a row has fewer; no column twice in a row.
    span: the same columns as a slice, where all rows share one run of them: the fast path.
    """

    columns: Tensor
    span: slice | None = None

    @classmethod
    def between(cls, state: Canvas, start: int, stop: int) -> Positions:
        """The columns `[start, stop)` for every row."""
        return cls(state.columns[start:stop].expand(state.batch, -1), slice(start, stop))

    @classmethod
    def of(cls, mask: Tensor, width: int) -> Positions:
        """Where `mask [batch, length]` holds, in order; `width` is the most that any row has."""
        # Stable, so that positions stay in order; the false ones come last.
        order = mask.long().argsort(dim=1, descending=True, stable=True)[:, :width]
        return cls(order.masked_fill(~mask.gather(1, order), -1))

    @property
    def width(self) -> int:
        """Columns of a row, padding included."""
        return self.columns.shape[1]

    @cached_property
    def inside(self) -> Tensor:
        """Which are columns and not padding, bool `[batch, width]`."""
        return self.columns >= 0

    def covers(self, length: int) -> bool:
        """Whether these are all columns of a canvas of that length, known without looking at the device."""
        return self.span is not None and self.width == length

    # Reading -----------------------------------------------------------------------------------

    def gather(self, values: Tensor, fill: float | None = None) -> Tensor:
        """A copy of `values [batch, length]` here, `[batch, width]`; `fill` at padding, if it matters."""
        if self.span is not None:
            return values[:, self.span].clone()
        taken = values.gather(1, self.columns.clamp_min(0))
        return taken if fill is None else taken.masked_fill(~self.inside, fill)

    def mask(self, length: int) -> Tensor:
        """These columns as bool `[batch, length]`."""
        none = torch.zeros(len(self.columns), length, dtype=torch.bool, device=self.columns.device)
        return self.put(none, True)

    def first(self, length: int) -> Tensor:
        """The leftmost column, `[batch, 1]`; `length` in a row that has none."""
        if self.span is not None:
            return self.columns[:, :1]
        return self.columns.where(self.inside, length).amin(1, keepdim=True)

    def end(self) -> Tensor:
        """The column behind the rightmost, `[batch, 1]`; 0 in a row that has none."""
        return self.columns.amax(1, keepdim=True) + 1

    def find(self, wanted: Tensor, length: int) -> Tensor:
        """The place of each `wanted [batch, n]` among these; -1 where it is not here, or is -1 itself."""
        places = torch.arange(self.width, device=self.columns.device).expand_as(self.columns)
        where = self.columns.new_full((len(self.columns), length), -1)
        found = Positions(wanted).gather(self.put(where, places))
        return found.masked_fill(wanted < 0, -1)

    # Writing -----------------------------------------------------------------------------------

    def put(self, into: Tensor, values: Tensor | float, where: Tensor | None = None) -> Tensor:
        """A copy of `into [batch, length]` with `values` here.

        Args:
            into: what is copied.
            values: one number, or `[batch, width]`.
            where: bool `[batch, width]`, the positions that are meant; all by default.
        """
        padded = torch.nn.functional.pad(into, (0, 1))  # what is left out lands in a column of its own
        self.write(padded, values, self.inside if where is None else where)
        return padded[:, :-1]

    def write(self, into: Tensor, values: Tensor | float, where: Tensor) -> None:
        """Write `values` in place where `where [batch, width]` holds.

        The last column of `into [batch, length + 1]` is nobody's: padding is written there.
        """
        if self.span is not None:
            view = into[:, self.span]
            if isinstance(values, Tensor):
                view.copy_(torch.where(where, values, view))
            else:
                view.masked_fill_(where, values)
            return
        scratch = into.shape[1] - 1
        index = self.columns.masked_fill(~(where & self.inside), scratch)
        into.scatter_(1, index, values)

    # Other positions ---------------------------------------------------------------------------

    def only(self, kept: Tensor) -> Positions:
        """These, with padding where `kept`, bool `[batch, width]`, is false."""
        return Positions(self.columns.masked_fill(~kept, -1))

    def among(self, visible: Tensor) -> Positions:
        """Those of them that `visible`, bool `[batch, length]`, holds."""
        return self.only(self.gather(visible))

    def and_more(self, columns: Tensor) -> Positions:
        """These and `columns [batch, n]`, padded with -1, behind them."""
        return Positions(torch.cat([self.columns, columns], 1))

    def from_place(self, start: int, stop: int | None = None) -> Positions:
        """The columns at places `[start, stop)` of each row."""
        columns = self.columns[:, start:stop]
        if self.span is None:
            return Positions(columns)
        first = self.span.start + start
        return Positions(columns, slice(first, first + columns.shape[1]))

    def before(self, ends: list[int], end: Tensor) -> Positions:
        """These without what lies at or behind each row's own end, given as a list and as `[batch]`."""
        nearest = min(ends)
        if self.span is not None:
            if nearest >= self.span.stop:
                return self
            if len(set(ends)) == 1:
                return self.from_place(0, max(nearest - self.span.start, 0))
        return self.only(self.columns < end[:, None])

    def window(self, state: Canvas, left: int, right: int | None) -> Positions:
        """These with `left` columns before them and `right` behind (None: all there are)."""
        length = state.length
        if self.span is not None:
            stop = length if right is None else min(self.span.stop + right, length)
            return Positions.between(state, max(self.span.start - left, 0), stop)
        first, device = self.first(length), self.columns.device
        if right is None:
            columns = (first - left).clamp_min(0) + state.columns
            return Positions(columns.where(columns < length, -1))
        before = first - left + torch.arange(left, device=device)
        behind = self.end() + torch.arange(right, device=device)
        around = torch.cat([before, behind], 1)
        real = (around >= 0) & (around < length) & self.inside.any(1, keepdim=True)
        around = around.where(real, -1)
        columns = torch.cat([around[:, :left], self.columns, around[:, left:]], 1)
        wide = Positions(columns)
        return wide if wide.width <= length else Positions.of(wide.mask(length), length)

    def repeated(self, times: int) -> Positions:
        """The same for `times` copies of the batch."""
        return self if times == 1 else Positions(self.columns.repeat(times, 1), self.span)
