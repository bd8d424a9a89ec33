"""Keys and values as long as the canvas, written where a forward computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Write:
    """Where the next forward writes: shared by the layers of one buffer."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.positions: slice | Tensor = slice(0, length)
        self.rows: Tensor | None = None


class _Layer(CacheLayerMixin):
    is_sliding = False
    is_compileable = True

    def __init__(self, write: _Write) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers has no annotation there
        self.write = write

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = value_states.dtype, value_states.device
        # One slot more than the canvas: padding is written there and never attended to.
        shape = (*key_states.shape[:2], self.write.length + 1, key_states.shape[-1])
        self.keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        shape = (*value_states.shape[:2], self.write.length + 1, value_states.shape[-1])
        self.values = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self._put(self.keys, key_states)
        self._put(self.values, value_states)
        length = self.write.length
        return self.keys[:, :, :length], self.values[:, :, :length]

    def _put(self, into: Tensor, states: Tensor) -> None:
        positions, rows = self.write.positions, self.write.rows
        if isinstance(positions, slice):
            view = into[:, :, positions]
            view.copy_(states if rows is None else torch.where(rows[:, None, None, None], states, view))
            return
        skipped = positions < 0 if rows is None else (positions < 0) | ~rows[:, None]
        index = positions.masked_fill(skipped, self.write.length)[:, None, :, None]
        into.scatter_(2, index.expand_as(states), states.to(into.dtype))

    def select_rows(self, index: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, index)
            self.values = self.values.index_select(0, index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.write.length, 0

    def get_seq_length(self) -> int:
        return 0  # positions are always given: the model must never derive them

    def get_max_length(self) -> int:
        return self.write.length


class KVBuffer(Cache):
    """A transformers cache of `length` slots in which a forward overwrites its own positions.

    Call `at` before each forward: the layers write where it says and attend to every slot; which
    slots are visible is the attention mask's affair.
    """

    def __init__(self, layers: int, length: int) -> None:
        self._write = _Write(length)
        self._layers = [_Layer(self._write) for _ in range(layers)]
        super().__init__(layers=list(self._layers))

    def at(self, positions: slice | Tensor, rows: Tensor | None) -> KVBuffer:
        """Write at `positions` (a slice, or `[batch, width]` padded with -1), for `rows [batch]` only.

        `rows=None` writes every row.
        """
        self._write.positions, self._write.rows = positions, rows
        return self

    def select_rows(self, index: Tensor) -> None:
        """Keep the rows of `index`."""
        for layer in self._layers:
            layer.select_rows(index)

    @property
    def filled(self) -> bool:
        """Whether a forward has written it."""
        return self._layers[0].is_initialized
