"""What one forward computes and sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dllm_sampling.state.positions import Positions

if TYPE_CHECKING:
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.region import Region


@dataclass(frozen=True, eq=False)
class ForwardPlan:
    """The positions one forward recomputes, and what it may attend to.

    Attributes:
        positions: Which ones; a tensor `[batch, width]` of columns padded with -1 is taken for `Positions` of
            it. What is not visible is never computed, whatever they say.
        visible: Bool `[batch, length]`, the positions attended to; None for the whole canvas. Padding, and
            what no forward has computed yet, is never visible.
        store: Whether keys and values are kept. A plan that keeps none attends to what it computes alone.
        refresh: Whether every visible position is computed, or bool `[batch]`, in which rows. True where
            `positions` is the whole canvas.
    """

    positions: Positions
    visible: Tensor | None = None
    store: bool = True
    refresh: bool | Tensor = False

    def __post_init__(self) -> None:
        if isinstance(self.positions, Tensor):
            object.__setattr__(self, "positions", Positions(self.positions))

    @classmethod
    def full(cls, state: DecodingState, *, store: bool = True) -> ForwardPlan:
        """Every position: a refresh.

        Args:
            state: The state of the run.
            store: Whether keys and values are kept.

        Returns:
            The plan.
        """
        return cls(Positions.between(state, 0, state.length), store=store, refresh=True)

    @classmethod
    def between(
        cls, state: DecodingState, start: int, stop: int, *, visible: Tensor | None = None, store: bool = True
    ) -> ForwardPlan:
        """The same columns of every row.

        Args:
            state: The state of the run.
            start: The first column.
            stop: The column behind the last one.
            visible: As the attribute.
            store: As the attribute.

        Returns:
            The plan.
        """
        return cls(Positions.between(state, start, stop), visible, store)

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
        """The positions of a mask.

        Args:
            mask: Bool `[batch, length]`, what is computed.
            width: The most positions that any row has, or more. Where a row has more than this, those behind
                are left out.
            visible: As the attribute.
            store: As the attribute.
            refresh: As the attribute.

        Returns:
            A plan whose positions stay in order.
        """
        return cls(Positions.of(mask, width), visible, store, refresh)

    @classmethod
    def window(cls, state: DecodingState, region: Region, left: int, right: int | None) -> ForwardPlan:
        """The region with columns around it.

        Args:
            state: The state of the run.
            region: The region.
            left: Columns before it.
            right: Columns after it; None for all there are.

        Returns:
            The plan; what lies outside the canvas is left out.
        """
        return cls(region.positions.window(state, left, right))

    def with_rows_refreshed(self, state: DecodingState, rows: Sequence[bool]) -> ForwardPlan:
        """The same plan, with a refresh of some rows.

        Args:
            state: The state of the run.
            rows: Which rows, a bool for each.

        Returns:
            The plan; as it is where no row is meant.
        """
        if self.is_refresh(state.length) or not any(rows):
            return self
        if all(rows):
            return ForwardPlan.full(state)
        whole = state.on_device(rows).bool()
        return ForwardPlan.of(
            self.mask(state) | whole[:, None],
            state.length,
            visible=None if self.visible is None else self.visible | whole[:, None],
            store=self.store,
            refresh=whole | self.refresh,
        )

    def within_sight(self) -> ForwardPlan:
        """The same plan without positions that it does not see."""
        return self if self.visible is None else replace(self, positions=self.positions.among(self.visible))

    @property
    def width(self) -> int:
        """Positions computed for each row, padding included."""
        return self.positions.width

    def is_refresh(self, length: int) -> bool:
        """Whether every visible position of every row is computed.

        Args:
            length: Columns of the canvas.

        Returns:
            True for a refresh of the whole batch.
        """
        return self.refresh is True or self.positions.covers(length)

    def refreshed(self, state: DecodingState) -> Tensor:
        """The rows of which every visible position is computed.

        Args:
            state: The state of the run.

        Returns:
            Bool `[batch]`.
        """
        if self.is_refresh(state.length):
            return torch.ones_like(state.row_steps).bool()
        # Of a row's own text, so that padding beside it does not count.
        seen, span = state.valid if self.visible is None else state.valid & self.visible, self.positions.span
        if span is not None:
            left_out = seen[:, : span.start].any(1) | seen[:, span.stop :].any(1)
        else:
            left_out = (seen & ~self.mask(state)).any(1)
        return ~left_out | self.refresh if isinstance(self.refresh, Tensor) else ~left_out

    def mask(self, state: DecodingState) -> Tensor:
        """The planned positions as a mask.

        Args:
            state: The state of the run.

        Returns:
            Bool `[batch, length]`.
        """
        return self.positions.mask(state.length)
