"""What a run keeps of each row: tensors on the device and lists on the host, indexed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class RowTensors:
    """One row for each canvas still in the batch. Only the engine writes them.

    Those of the canvas are `[batch, length + 1]`: writes at no position land in the last column, which is
    never read. The others are `[batch]`, and `targets_in_block`, where it is known, `[batch, blocks]`.
    """

    tokens: Tensor
    targets: Tensor
    masked: Tensor
    valid: Tensor
    position_ids: Tensor
    committed_at: Tensor
    confidence: Tensor
    seeds: Tensor
    steps: Tensor
    block_steps: Tensor
    forwards_beside: Tensor
    forced: Tensor
    remasks: Tensor
    refreshes: Tensor
    idle_left: Tensor
    ended: Tensor
    end_of_targets: Tensor
    targets_in_block: Tensor | None = None

    @classmethod
    def start(
        cls, tokens: Tensor, targets: Tensor, valid: Tensor, seeds: Tensor, idle_steps: Tensor, mask: int
    ) -> RowTensors:
        """Before the first forward: every target is open, and holds the id `mask`."""
        tokens = _with_scratch(tokens.masked_fill(targets, mask))
        return cls(
            tokens=tokens,
            targets=_with_scratch(targets),
            masked=_with_scratch(targets),
            valid=_with_scratch(valid),
            position_ids=_with_scratch((valid.long().cumsum(1) - 1).clamp_min(0)),
            committed_at=torch.full_like(tokens, -1),
            confidence=torch.full(tokens.shape, torch.nan, device=tokens.device),
            seeds=seeds,
            # Tensors of their own: a write in place into one must not show in another.
            steps=torch.zeros_like(idle_steps),
            block_steps=torch.zeros_like(idle_steps),
            forwards_beside=torch.zeros_like(idle_steps),
            forced=torch.zeros_like(idle_steps),
            remasks=torch.zeros_like(idle_steps),
            refreshes=torch.zeros_like(idle_steps),
            idle_left=idle_steps,
            ended=torch.zeros_like(idle_steps, dtype=torch.bool),
            end_of_targets=targets.shape[1] - targets.flip(1).long().argmax(1),
        )

    def select(self, index: Tensor) -> None:
        """Keep the rows of `index [n]`, in place; an index may repeat."""
        for field in fields(self):
            values = getattr(self, field.name)
            if values is not None:
                setattr(self, field.name, values.index_select(0, index))


@dataclass
class RowLists:
    """What the host knows of each row still in the batch.

    index: the canvas's index in the batch as it began. places: the prompt's place in the call. ends: the
    column behind the last target. next_open: the column of the leftmost open target that still matters, the
    canvas's length where none does.
    """

    index: list[int]
    places: list[int]
    ends: list[int]
    next_open: list[int]

    def select(self, keep: Sequence[int]) -> None:
        """Keep these rows, in place; an index may repeat."""
        for field in fields(self):
            values = getattr(self, field.name)
            setattr(self, field.name, [values[i] for i in keep])


def _with_scratch(tensor: Tensor) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 1))
