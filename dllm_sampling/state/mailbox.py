"""What travels to the host with a step's one read-back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dllm_sampling.errors import DllmSamplingError, PluginError

Trouble = DllmSamplingError | Callable[[], DllmSamplingError]


class Mailbox:
    """Integers that policies send, and troubles that are raised if they have come true."""

    def __init__(self) -> None:
        self._sent: dict[str, Tensor] = {}
        self._carried: dict[str, list[list[int]]] = {}
        self._troubles: list[tuple[Tensor, Trouble]] = []

    def carry(self, who: str, slot: str, values: Tensor, batch: int) -> None:
        """Send integers `[batch, n]` of a slot."""
        if values.ndim != 2 or len(values) != batch or values.is_floating_point():
            raise PluginError(
                f"{who} ({slot}) carries {values.dtype} {list(values.shape)}; it must be integers "
                f"[{batch}, any]."
            )
        self._sent[slot] = values.long()

    def carried(self, slot: str) -> list[list[int]] | None:
        """What a slot sent last; None at first."""
        return self._carried.get(slot)

    def trouble(self, found: Tensor, error: Trouble) -> None:
        """Raise `error`, or what it makes, at the next read-back if the bool scalar `found` is true."""
        self._troubles.append((found, error))

    def read(self, own: Tensor) -> list[int]:
        """The one host synchronisation of a step: deliver what was sent, and return `own [n]`.

        Raises the first trouble that has come true.
        """
        troubles, self._troubles = self._troubles, []
        flags = [torch.stack([found for found, _ in troubles]).long()] if troubles else []
        sent = [values.flatten() for values in self._sent.values()]
        numbers: list[int] = torch.cat([*flags, own, *sent]).tolist()
        for (_, error), found in zip(troubles, numbers, strict=False):
            if found:
                raise error if isinstance(error, DllmSamplingError) else error()
        start = len(troubles)
        stop = start + len(own)
        read, rest = numbers[start:stop], numbers[stop:]
        for slot, values in self._sent.items():
            rows, width = values.shape
            self._carried[slot] = [rest[i * width : (i + 1) * width] for i in range(rows)]
            rest = rest[rows * width :]
        self._sent = {}
        return read

    def select(self, keep: Sequence[int]) -> None:
        """Keep what these rows have sent."""
        self._carried = {slot: [rows[i] for i in keep] for slot, rows in self._carried.items()}
