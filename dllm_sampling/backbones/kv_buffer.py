"""Keys and values as long as the canvas, written where a forward computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dllm_sampling.state.positions import Positions


class _Write:
    """Where the next forward writes and what it sees: shared by the layers of one buffer."""

    def __init__(self, length: int, slots: int) -> None:
        self.length = length
        self.slots = slots
        self.span: slice | None = None
        self.columns: Tensor | None = None
        self.rows: Tensor | None = None
        self.seen = length


class _Layer(CacheLayerMixin):
    is_sliding = False
    is_compileable = True

    def __init__(self, write: _Write, fixed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers has no annotation there
        self.write = write
        self._fixed = fixed
        self._storage: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = value_states.dtype, value_states.device
        batch = key_states.shape[0]
        if self._storage is None or self._storage[0].shape[0] < batch:
            # One slot more than is seen: padding is written there and never attended to.
            self._storage = tuple(  # type: ignore[assignment]  # two of them
                states.new_zeros(*states.shape[:2], self.write.slots + 1, states.shape[-1])
                for states in (key_states, value_states)
            )
        else:
            for tensor in self._storage:
                tensor.zero_()
        self._narrow(batch)
        self.is_initialized = True

    def _narrow(self, batch: int) -> None:
        """Use the first rows of the storage, whose address stays."""
        assert self._storage is not None
        self.keys, self.values = (tensor[:batch] for tensor in self._storage)
        if self._fixed:  # a CUDA graph may write there
            torch._dynamo.mark_static_address(self.keys)
            torch._dynamo.mark_static_address(self.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self._put(self.keys, key_states)
        self._put(self.values, value_states)
        seen = self.write.seen
        return self.keys[:, :, :seen], self.values[:, :, :seen]

    def _put(self, into: Tensor, states: Tensor) -> None:
        span, columns, rows = self.write.span, self.write.columns, self.write.rows
        rows = None if rows is None else _on(rows, into.device)
        if span is not None or columns is None:
            view = into[:, :, span or slice(None)]
            view.copy_(states if rows is None else torch.where(rows[:, None, None, None], states, view))
            return
        columns = _on(columns, into.device)
        skipped = columns < 0 if rows is None else (columns < 0) | ~rows[:, None]
        index = columns.masked_fill(skipped, self.write.slots)[:, None, :, None]
        into.scatter_(2, index.expand_as(states), states.to(into.dtype))

    def select_rows(self, index: Tensor) -> None:
        if self.keys is None or self.values is None:
            return
        index = _on(index, self.keys.device)
        for tensor in (self.keys, self.values):
            tensor[: len(index)] = tensor.index_select(0, index)
        self._narrow(len(index))

    def reset(self) -> None:
        """Forget what was written; keep the memory."""
        self.keys = self.values = None
        self.is_initialized = False

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.write.seen, 0

    def get_seq_length(self) -> int:
        return 0  # positions are always given: the model must never derive them

    def get_max_length(self) -> int:
        return self.write.slots


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    """For layers spread over devices; where there is one nothing is copied."""
    return tensor if tensor.device == device else tensor.to(device)


class KVBuffer(Cache):
    """A transformers cache in which a forward overwrites the entries of its own positions.

    length: of the canvas. slots: entries of a row, at least `length`; what lies behind the canvas is
    never written and must be masked by who sees it. fixed: whether its memory keeps its address, as
    CUDA graphs need.

    Call `at` before each forward: the layers write where it says and attend to the first `seen` slots;
    which of these are visible is the attention mask's affair.
    """

    def __init__(self, layers: int, length: int, *, slots: int | None = None, fixed: bool = False) -> None:
        self._write = _Write(length, slots or length)
        self._layers = [_Layer(self._write, fixed) for _ in range(layers)]
        super().__init__(layers=list(self._layers))

        # Rows a canvas: itself and its branches. Which slots were computed; None once all were.
        self.copies = 1
        self.written: Tensor | None = None
        self.complete = False

    @property
    def slots(self) -> int:
        """Entries of a row."""
        return self._write.slots

    def at(self, positions: Positions | slice, rows: Tensor | None, *, seen: int | None = None) -> KVBuffer:
        """Write at `positions`, for `rows [batch]` only.

        rows: None writes every row. seen: slots attended to, by default those of the canvas.
        """
        if isinstance(positions, slice):
            self._write.span, self._write.columns = positions, None
        else:
            self._write.span, self._write.columns = positions.span, positions.columns
        self._write.rows = rows
        self._write.seen = self._write.length if seen is None else seen
        return self

    def select_rows(self, index: Tensor) -> None:
        """Keep the rows of `index`, in place."""
        if self.copies > 1 and self.filled:
            keys = self._layers[0].keys
            assert keys is not None
            each = keys.shape[0] // self.copies
            index = torch.cat([index + i * each for i in range(self.copies)])
        if self.written is not None:
            self.written = self.written.index_select(0, index[: len(index) // self.copies])
        for layer in self._layers:
            layer.select_rows(index)

    def reuse(self, length: int) -> KVBuffer:
        """Empty, for canvases of another length that fit."""
        self._write.length = length
        self.copies, self.written, self.complete = 1, None, False
        for layer in self._layers:
            layer.reset()
        return self

    @property
    def filled(self) -> bool:
        """Whether a forward has written it."""
        return self._layers[0].is_initialized
