"""What a policy remembers in one run."""

from __future__ import annotations

from collections import UserDict
from typing import Any

from torch import Tensor

from dllm_sampling.errors import DecodingError, PluginError, shown


class Memory(UserDict[str, Tensor]):
    """Tensors of one policy, a row for each row of the batch: rows that leave take theirs along.

    Raises PluginError for what has no such row; what belongs to no row goes into `DecodingState.shared`.
    """

    def __init__(self, owner: str, batch: int) -> None:
        self.owner = owner
        self._batch = batch
        super().__init__()

    def __setitem__(self, key: str, value: Tensor) -> None:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != self._batch:
            given = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else shown(value)
            raise PluginError(
                f"{self.owner} remembers {key!r} as {given}: what state.memory holds is a tensor whose first "
                f"dimension is the batch, {self._batch}; what belongs to no row goes into state.shared."
            )
        super().__setitem__(key, value)

    def select(self, index: Tensor) -> None:
        """Keep the rows of `index [n]`, in place."""
        self._batch = len(index)
        self.data = {key: value.index_select(0, index) for key, value in self.data.items()}


class Memories:
    """The memory of every policy of a run, by slot."""

    def __init__(self, slots: dict[int, str], batch: int) -> None:
        self.slots = slots
        self.rows = {slot: Memory(slot, batch) for slot in slots.values()}
        self.shared: dict[str, dict[str, Any]] = {slot: {} for slot in slots.values()}

    def slot(self, policy: object) -> str:
        """The policy's place in the run. DecodingError for one that has none."""
        try:
            return self.slots[id(policy)]
        except KeyError:
            raise DecodingError(
                f"{type(policy).__name__} asked for memory but is not part of this run; only policies "
                "given to the Sampler, and the policies in their fields, have any."
            ) from None

    def select(self, index: Tensor) -> None:
        """Keep the rows of `index [n]`, in place."""
        for memory in self.rows.values():
            memory.select(index)
