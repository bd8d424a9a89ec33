"""Counts host synchronisations on any device, a CPU included."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_FUNCTIONS = {
    torch.Tensor.item: "item",
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.cpu: "cpu",
    torch.Tensor.__bool__: "bool",
    torch.Tensor.__int__: "int",
    torch.Tensor.__float__: "float",
    torch.Tensor.__index__: "__index__",
    torch.Tensor.__contains__: "__contains__",
}
_OPERATORS = {
    "aten::nonzero": "nonzero",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::masked_select": "masked_select",
    "aten::equal": "equal",
    "aten::_local_scalar_dense": "scalar",
}


class SyncCounter:
    """Counts what makes the host wait for a device, as a context.

    Function calls (`item`, `tolist`, `numpy`, `cpu`, `to` another device, `bool`, `int`, `__index__`) and
    operators whose result's shape depends on values (`nonzero`, `unique`, `masked_select`, `equal`,
    `repeat_interleave` by a tensor, indexing with a mask). A copy `to` a named device counts outside
    transformers, whose models pass their own device.

    Attributes:
        counts: How often each was called, by name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._inside = 0
        self._modes: list[Any] = []

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    def __enter__(self) -> SyncCounter:
        self._modes = [_Functions(self), _Operators(self)]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Functions(TorchFunctionMode):
    def __init__(self, counter: SyncCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _FUNCTIONS.get(func)
        if func is torch.Tensor.to and _names_a_device(args, kwargs) and not _from_transformers():
            name = "to"
        if name is None:
            return func(*args, **kwargs)
        if not self.counter._inside:
            self.counter.counts[name] += 1
        self.counter._inside += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.counter._inside -= 1


class _Operators(TorchDispatchMode):
    def __init__(self, counter: SyncCounter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no annotation there
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _OPERATORS.get(func._schema.name)
        if func._schema.name == "aten::repeat_interleave" and "output_size" not in (kwargs or {}):
            name = "repeat_interleave"
        if func._schema.name in {"aten::index", "aten::index_put", "aten::index_put_"}:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                name = "boolean indexing"
        if name is not None and not self.counter._inside:
            self.counter.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _names_a_device(args: Any, kwargs: Any) -> bool:
    return "device" in kwargs or any(isinstance(arg, (str, torch.device)) for arg in args[1:])


def _from_transformers() -> bool:
    frame = sys._getframe(2)
    while frame is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return frame is not None and "/transformers/" in frame.f_code.co_filename
