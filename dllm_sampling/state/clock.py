"""Where in its steps a batch is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Forwards of the batch: all of them, and those since the block started."""

    forwards: int = 0
    block_forwards: int = 0

    def tick(self) -> None:
        """A step is done."""
        self.forwards += 1
        self.block_forwards += 1
