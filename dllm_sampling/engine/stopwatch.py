"""The one place where time is taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds from one lap to the next, without what happens while it is paused.

    It starts when the device is done with what came before; a lap is to be taken when the device is done, as
    it is after a step's read-back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.wait()
        self._begun = time.perf_counter()

    def wait(self) -> None:
        """Wait until the device is done, where nothing else has waited."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def lap(self) -> float:
        """Seconds since the last lap, or the start."""
        now = time.perf_counter()
        begun, self._begun = self._begun, now
        return now - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside belongs to no lap."""
        stopped = time.perf_counter()
        try:
            yield
        finally:
            self._begun += time.perf_counter() - stopped
