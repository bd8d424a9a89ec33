"""What a run knows of the canvases that it decodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dllm_sampling.errors import no_attribute
from dllm_sampling.state import noise
from dllm_sampling.state.clock import Clock
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.mailbox import Mailbox, Trouble
from dllm_sampling.state.memory import Memories, Memory
from dllm_sampling.state.positions import Positions
from dllm_sampling.state.rows import RowLists, RowTensors


class DecodingState:
    """The canvases of one batch while they are decoded.

    Tensors have one row a canvas still in the batch. Policies read; only the engine writes, and nothing here
    can be assigned.

    Attributes:
        facts: What may be known of the model.
        stop_at_eos: Whether an end of sequence ends a row.
        length: Columns of the canvas, padding included.
        columns: `[length]`, their numbers.
        first_target: The column of the first target, the same in every row.
        last_start: The column at which the last of the texts starts.
        has_padding: Whether any text starts later than column 0.
        most_forwards: The batch takes no more than so many.
        tensors: A part that the engine writes; policies read it by the names below.
        lists: The same, of what the host knows of rows.
        clock: The same, of forwards.
        mailbox: The same, of what goes to the host.
        names: Of the policies by role, for what they are blamed for.
    """

    def __init__(
        self,
        *,
        tokens: Tensor,
        targets: Tensor,
        valid: Tensor,
        seeds: Tensor,
        idle_steps: Tensor,
        facts: ModelFacts,
        slots: Mapping[int, str],
        stop_at_eos: bool,
        places: Sequence[int] | None = None,
        names: Mapping[str, str] | None = None,
        hooks: Any = None,
    ) -> None:
        batch, length = tokens.shape
        tensors = RowTensors.start(tokens, targets, valid, seeds, idle_steps, facts.mask_token_id)
        rows = list(range(batch))
        lists = RowLists(
            rows, list(rows if places is None else places), tensors.end_of_targets.tolist(), rows
        )
        vars(self).update(
            facts=facts,
            stop_at_eos=stop_at_eos,
            length=length,
            columns=torch.arange(length, device=tokens.device),
            first_target=int(targets.any(0).long().argmax()),
            last_start=int(valid.long().argmax(1).max()),
            has_padding=not bool(valid.all()),
            # In each forward one row at least makes progress or spends an idle step.
            most_forwards=int((idle_steps + targets.sum(1)).sum()),
            tensors=tensors,
            lists=lists,
            clock=Clock(),
            mailbox=Mailbox(),
            hooks=hooks,
            names=dict(names or {}),  # of the policies by role, for what they are blamed for
            _memories=Memories(dict(slots), batch),
            _eos=torch.tensor(facts.eos_token_ids, dtype=torch.long, device=tokens.device),
        )
        self.read_back()

    facts: ModelFacts
    stop_at_eos: bool
    length: int
    columns: Tensor
    first_target: int
    last_start: int
    has_padding: bool
    most_forwards: int
    tensors: RowTensors
    lists: RowLists
    clock: Clock
    mailbox: Mailbox
    hooks: Any
    names: dict[str, str]
    _memories: Memories
    _eos: Tensor

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"DecodingState.{name} cannot be assigned: only the engine writes the state. What a policy "
            "remembers goes into state.memory(self) or state.shared(self); what it wants written, into its "
            "Decision."
        )

    # What policies read ------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Rows left in the batch."""
        return len(self.lists.index)

    @property
    def rows(self) -> list[int]:
        """Each row's index in the batch as it began."""
        return self.lists.index

    @property
    def places(self) -> list[int]:
        """Each row's place among the prompts of the call."""
        return self.lists.places

    @property
    def row_ends(self) -> list[int]:
        """The column behind each row's last target, on the host; `end_of_targets` is the same as a tensor."""
        return self.lists.ends

    @property
    def next_open(self) -> list[int]:
        """The column of each row's leftmost open target that still matters; `length` where none does."""
        return self.lists.next_open

    @property
    def tokens(self) -> Tensor:
        """`[batch, length]`; what an open target holds is not to be relied on: see `masked`."""
        return self.tensors.tokens[:, : self.length]

    @property
    def targets(self) -> Tensor:
        """`[batch, length]` bool: positions to be written."""
        return self.tensors.targets[:, : self.length]

    @property
    def masked(self) -> Tensor:
        """`[batch, length]` bool: open targets. A mask token in the prompt is text, and not masked."""
        return self.tensors.masked[:, : self.length]

    @property
    def valid(self) -> Tensor:
        """`[batch, length]` bool, False at padding."""
        return self.tensors.valid[:, : self.length]

    @property
    def position_ids(self) -> Tensor:
        """`[batch, length]`, counted from the start of each text."""
        return self.tensors.position_ids[:, : self.length]

    @property
    def committed_at(self) -> Tensor:
        """`[batch, length]`: the 0-based forward that committed the position, -1 elsewhere."""
        return self.tensors.committed_at[:, : self.length]

    @property
    def committed_confidence(self) -> Tensor:
        """`[batch, length]` float32: the confidence at commit, NaN elsewhere."""
        return self.tensors.confidence[:, : self.length]

    @property
    def end_of_targets(self) -> Tensor:
        """`[batch]`: the column behind each row's last target."""
        return self.tensors.end_of_targets

    @property
    def targets_in_block(self) -> Tensor | None:
        """`[batch, blocks]`; None where the schedule cannot know its blocks."""
        return self.tensors.targets_in_block

    @property
    def seeds(self) -> Tensor:
        """`[batch]`: each row's seed."""
        return self.tensors.seeds

    @property
    def row_steps(self) -> Tensor:
        """`[batch]`, the row's own clock: forwards in which it had an open target in its region."""
        return self.tensors.steps

    @property
    def block_steps(self) -> Tensor:
        """`[batch]`: `row_steps` counted from the start of the block."""
        return self.tensors.block_steps

    @property
    def row_forced(self) -> Tensor:
        """`[batch]`: commits that the engine has made."""
        return self.tensors.forced

    @property
    def row_remasks(self) -> Tensor:
        """`[batch]`: positions that were masked again."""
        return self.tensors.remasks

    @property
    def row_refreshes(self) -> Tensor:
        """`[batch]`: forwards over all that the row sees."""
        return self.tensors.refreshes

    @property
    def forward_index(self) -> int:
        """Forwards of the batch so far."""
        return self.clock.forwards

    @property
    def block_forwards(self) -> int:
        """Forwards of the batch since the block started."""
        return self.clock.block_forwards

    @property
    def progress(self) -> Tensor:
        """Share of each row's targets that are committed, `[batch]` float32."""
        total = self.tensors.targets.sum(1)
        return 1 - self.tensors.masked.sum(1) / total.clamp_min(1)

    @property
    def finished(self) -> bool:
        """Whether no row is left."""
        return not self.lists.index

    # What policies remember and send -----------------------------------------------------------

    def memory(self, policy: object) -> Memory:
        """What a policy remembers of each row: empty at the start of a run, kept for its slot alone.

        Args:
            policy: The policy that asks: `self`.

        Returns:
            Tensors by name, batch first; rows that leave the batch take theirs along. Anything else that is
                put there is a PluginError.

        Raises:
            DecodingError: The policy is not part of this run.
        """
        return self._memories.rows[self._memories.slot(policy)]

    def shared(self, policy: object) -> dict[str, Any]:
        """What a policy keeps that belongs to no row, such as a table or a number of the run.

        Args:
            policy: The policy that asks: `self`.

        Returns:
            A dict that is empty at the start of a run, kept for its slot alone.

        Raises:
            DecodingError: The policy is not part of this run.
        """
        return self._memories.shared[self._memories.slot(policy)]

    def carry(self, policy: object, values: Tensor) -> None:
        """Send integers to the host with this step's read-back, at no further cost.

        To be called in any hook of a step up to `committed`; `carried` has them from the next step on.

        Args:
            policy: The policy that asks: `self`.
            values: Integers or bools `[batch, n]`.

        Raises:
            PluginError: The values have another shape or are floating-point numbers.
        """
        self.mailbox.carry(type(policy).__name__, self._memories.slot(policy), values, self.batch)

    def carried(self, policy: object) -> list[list[int]] | None:
        """What a policy carried last.

        Args:
            policy: The policy that asks: `self`.

        Returns:
            A list of integers for each row now in the batch, or None where nothing was carried yet.
        """
        return self.mailbox.carried(self._memories.slot(policy))

    def trouble(self, found: Tensor, error: Trouble) -> None:
        """Raise an error when this step is read back, if something proves true.

        So the values of tensors are checked without waiting for the device.

        Args:
            found: A bool scalar tensor.
            error: What is raised where it is true, or what makes it.
        """
        self.mailbox.trouble(found, error)

    def on_device(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Host integers as a tensor on the run's device, without waiting for it.

        Args:
            numbers: Integers, or rows of them.

        Returns:
            An int64 tensor of the same shape.
        """
        return row_index(numbers, self.columns.device)

    # Randomness --------------------------------------------------------------------------------

    def uniform(self, policy: object, positions: Positions) -> Tensor:
        """Random numbers in (0, 1).

        A function of the row's seed, the position in the row's own text, the row's clock and the policy's
        slot, so a row draws the same numbers alone and in any batch.

        Args:
            policy: The policy that asks: `self`.
            positions: Where.

        Returns:
            `[batch, width]` float64.
        """
        return noise.uniform(self.noise_keys(positions, self._memories.slot(policy)))

    def noise_keys(self, positions: Positions, purpose: str) -> Tensor:
        """The 64-bit keys of the row's noise, for one purpose.

        Args:
            positions: Where.
            purpose: What the noise is for; keys of two purposes are independent.

        Returns:
            `[batch, width]` int64.
        """
        ids = positions.gather(self.position_ids)
        return noise.keys(self.seeds[:, None], self.row_steps[:, None], ids, purpose)

    # What the engine does between steps --------------------------------------------------------

    def begin_block(self) -> None:
        """Set the clocks of the block to zero."""
        self.clock.block_forwards = 0
        self.tensors.block_steps = torch.zeros_like(self.tensors.block_steps)

    def read_back(self) -> None:
        """Learn which rows are done, and whether the last commit met trouble."""
        masked = self.masked & ~self.tensors.ended[:, None]
        if self.stop_at_eos:
            is_eos = (self.tokens[..., None] == self._eos).any(-1) & self.targets & ~self.masked
            masked = masked & ~(is_eos.long().cumsum(1) > 0)
        first = torch.where(masked, self.columns, self.length).amin(1)
        # What a finished row leaves open is no target any more.
        self.masked.logical_and_((first < self.length)[:, None])
        self.lists.next_open = self.mailbox.read(first)

    def end_rows(self, rows: Tensor) -> None:
        """End rows between two steps: their text ends before their leftmost open target.

        Args:
            rows: Bool `[batch]`.
        """
        open_from = self.on_device(self.next_open)
        self.masked.logical_and_(~rows[:, None])
        self.committed_at.masked_fill_(rows[:, None] & (self.columns >= open_from[:, None]), -1)
        ended = rows.tolist()
        self.lists.next_open = [self.length if e else at for e, at in zip(ended, self.next_open, strict=True)]

    def select_rows(self, keep: Sequence[int]) -> Tensor:
        """Go on with some rows.

        Args:
            keep: Indices into the batch, which may repeat.

        Returns:
            The same indices as a tensor.
        """
        index = row_index(keep, self.columns.device)
        self.lists.select(keep)
        self.mailbox.select(keep)
        self.tensors.select(index)
        self._memories.select(index)
        return index


def row_index(rows: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Integers as a tensor on the device, without waiting for it."""
    index = torch.tensor(rows, dtype=torch.long)
    # Pinned, so that the copy does not wait for the device.
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index
