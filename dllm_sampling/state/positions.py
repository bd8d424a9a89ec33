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

    Attributes:
        columns: `[batch, width]`, -1 where a row has fewer; no column twice in a row.
        span: The same columns as a slice, where all rows share one run of them: the fast path.
    """

    columns: Tensor
    span: slice | None = None

    @classmethod
    def between(cls, state: Canvas, start: int, stop: int) -> Positions:
        """The same columns for every row.

        Args:
            state: The state of the run.
            start: The first column.
            stop: The column behind the last one.

        Returns:
            The positions, with a span.
        """
        return cls(state.columns[start:stop].expand(state.batch, -1), slice(start, stop))

    @classmethod
    def of(cls, mask: Tensor, width: int) -> Positions:
        """Where a mask holds, in order.

        Args:
            mask: Bool `[batch, length]`.
            width: The most that any row has.

        Returns:
            The positions.
        """
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
        """Whether these are all columns of a canvas, known without looking at the device.

        Args:
            length: Columns of the canvas.

        Returns:
            True for a span of all of them.
        """
        return self.span is not None and self.width == length

    # Reading -----------------------------------------------------------------------------------

    def gather(self, values: Tensor, fill: float | None = None) -> Tensor:
        """Values of the canvas here.

        Args:
            values: `[batch, length]`.
            fill: What padding gets, if it matters.

        Returns:
            A copy, `[batch, width]`.
        """
        if self.span is not None:
            return values[:, self.span].clone()
        taken = values.gather(1, self.columns.clamp_min(0))
        return taken if fill is None else taken.masked_fill(~self.inside, fill)

    def mask(self, length: int) -> Tensor:
        """These columns as a mask.

        Args:
            length: Columns of the canvas.

        Returns:
            Bool `[batch, length]`.
        """
        none = torch.zeros(len(self.columns), length, dtype=torch.bool, device=self.columns.device)
        return self.put(none, True)

    def first(self, length: int) -> Tensor:
        """The leftmost column of each row.

        Args:
            length: Columns of the canvas.

        Returns:
            `[batch, 1]`; `length` in a row that has none.
        """
        if self.span is not None:
            return self.columns[:, :1]
        return self.columns.where(self.inside, length).amin(1, keepdim=True)

    def end(self) -> Tensor:
        """The column behind the rightmost, `[batch, 1]`; 0 in a row that has none."""
        return self.columns.amax(1, keepdim=True) + 1

    def find(self, wanted: Tensor, length: int) -> Tensor:
        """The places of columns among these.

        Args:
            wanted: `[batch, n]` columns.
            length: Columns of the canvas.

        Returns:
            `[batch, n]`; -1 where a column is not here, or is -1 itself.
        """
        places = torch.arange(self.width, device=self.columns.device).expand_as(self.columns)
        where = self.columns.new_full((len(self.columns), length), -1)
        found = Positions(wanted).gather(self.put(where, places))
        return found.masked_fill(wanted < 0, -1)

    # Writing -----------------------------------------------------------------------------------

    def put(self, into: Tensor, values: Tensor | float, where: Tensor | None = None) -> Tensor:
        """A copy of a canvas with values here.

        Args:
            into: `[batch, length]`, what is copied.
            values: One number, or `[batch, width]`.
            where: Bool `[batch, width]`, the positions that are meant; all by default.

        Returns:
            `[batch, length]`.
        """
        padded = torch.nn.functional.pad(into, (0, 1))  # what is left out lands in a column of its own
        self.write(padded, values, self.inside if where is None else where)
        return padded[:, :-1]

    def write(self, into: Tensor, values: Tensor | float, where: Tensor) -> None:
        """Write values in place.

        Args:
            into: `[batch, length + 1]`; the last column is nobody's, padding is written there.
            values: One number, or `[batch, width]`.
            where: Bool `[batch, width]`, the positions that are meant.
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
        """These, with padding in place of some.

        Args:
            kept: Bool `[batch, width]`, those that stay.

        Returns:
            As many positions a row.
        """
        return Positions(self.columns.masked_fill(~kept, -1))

    def among(self, visible: Tensor) -> Positions:
        """Those of them that a set holds.

        Args:
            visible: Bool `[batch, length]`, the set.

        Returns:
            As many positions a row, padding in place of the others.
        """
        return self.only(self.gather(visible))

    def and_more(self, columns: Tensor) -> Positions:
        """These with others behind them.

        Args:
            columns: `[batch, n]`, padded with -1.

        Returns:
            The positions of both.
        """
        return Positions(torch.cat([self.columns, columns], 1))

    def from_place(self, start: int, stop: int | None = None) -> Positions:
        """The columns at some places of each row.

        Args:
            start: The first place.
            stop: The place behind the last one; None for all that follow.

        Returns:
            Their positions.
        """
        columns = self.columns[:, start:stop]
        if self.span is None:
            return Positions(columns)
        first = self.span.start + start
        return Positions(columns, slice(first, first + columns.shape[1]))

    def before(self, ends: list[int], end: Tensor) -> Positions:
        """These without what lies at or behind each row's own end.

        Args:
            ends: The end of each row.
            end: `[batch]`, the same on the device.

        Returns:
            Their positions.
        """
        nearest = min(ends)
        if self.span is not None:
            if nearest >= self.span.stop:
                return self
            if len(set(ends)) == 1:
                return self.from_place(0, max(nearest - self.span.start, 0))
        return self.only(self.columns < end[:, None])

    def window(self, state: Canvas, left: int, right: int | None) -> Positions:
        """These with columns around them.

        Args:
            state: The state of the run.
            left: Columns before them.
            right: Columns behind them; None for all there are.

        Returns:
            Their positions; what lies outside the canvas is left out.
        """
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
        """The same for several copies of the batch.

        Args:
            times: How many.

        Returns:
            Positions of so many times the rows.
        """
        return self if times == 1 else Positions(self.columns.repeat(times, 1), self.span)
