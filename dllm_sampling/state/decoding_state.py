"""What a run knows: the decoding state, and what the policies hand to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dllm_sampling.errors import DecodingError, DllmSamplingError, PluginError, no_attribute
from dllm_sampling.state import noise
from dllm_sampling.state.decision import Decision
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.region import Region

if TYPE_CHECKING:
    from dllm_sampling.state.observation import Observation


Memory = dict[str, Any]


class DecodingState:
    """The canvases of one batch while they are decoded.

    Tensors have one row a canvas still in the batch. Policies read; only the engine writes.

    rows: the canvas's index in the batch as it began, a list.
    first_target: the column of the first target, the same in every row.
    row_ends, end_of_targets: the column behind each row's last target, as a list and as a tensor `[batch]`.
    tokens: `[batch, length]`, the mask id at open targets.
    targets, masked: `[batch, length]` bool; a masked position is an open target. A mask token in the
        prompt is text, and not masked in this sense.
    valid: `[batch, length]` bool, False at padding. position_ids: `[batch, length]`.
    committed_at: `[batch, length]`, the 0-based forward that committed the position, -1 elsewhere.
    committed_confidence: `[batch, length]` float32, the confidence at commit, NaN elsewhere.
    row_steps: `[batch]`, the row's own clock: forwards in which it had an open target in its region.
    block_steps: `[batch]`, the same, counted from the start of the block.
    row_forced, row_remasks, row_refreshes: `[batch]`, counted so far.
    most_forwards: the batch takes no more than so many.
    forward_index: forwards made so far. block_forwards: those since the block started.
    targets_in_block: `[batch, blocks]`, or None where the schedule cannot know its blocks.
    hooks: what policies of this run ask each other, see `Policy.own_hooks`; there in a run alone.
    """

    hooks: Any

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
        names: Mapping[str, str] | None = None,
    ) -> None:
        batch, length = tokens.shape
        device = tokens.device
        self.facts = facts
        self.stop_at_eos = stop_at_eos
        self.length = length
        self.columns = torch.arange(length, device=device)
        self.rows = list(range(batch))
        self.first_target = int(targets.any(0).long().argmax())
        self.end_of_targets = length - targets.flip(1).long().argmax(1)
        self.row_ends: list[int] = self.end_of_targets.tolist()
        # The column at which the last of the texts starts.
        self.last_start = int(valid.long().argmax(1).max())
        self.has_padding = not bool(valid.all())
        self.forward_index = 0
        self.block_forwards = 0
        self.targets_in_block: Tensor | None = None
        # One column more than the canvas: writes at position -1 land there and are never read.
        self._tokens = _with_scratch(tokens.masked_fill(targets, facts.mask_token_id))
        self._targets = _with_scratch(targets)
        self._masked = self._targets.clone()
        self._valid = _with_scratch(valid)
        self._position_ids = _with_scratch((valid.long().cumsum(1) - 1).clamp_min(0))
        self._committed_at = torch.full_like(self._tokens, -1)
        self._confidence = torch.full(self._tokens.shape, torch.nan, device=device)
        self.seeds = seeds
        self.row_steps = torch.zeros(batch, dtype=torch.long, device=device)
        self.block_steps = torch.zeros_like(self.row_steps)
        self.row_forced = torch.zeros_like(self.row_steps)
        self.row_remasks = torch.zeros_like(self.row_steps)
        self.row_refreshes = torch.zeros_like(self.row_steps)
        self.idle_left = idle_steps
        # In each forward one row at least makes progress or spends an idle step.
        self.most_forwards = int((idle_steps + targets.sum(1)).sum())
        self._ended = torch.zeros(batch, dtype=torch.bool, device=device)
        self._slots = slots
        self._names = names or {}  # of the policies by role, for what they are blamed for
        self._memories: dict[str, Memory] = {slot: {} for slot in slots.values()}
        self._eos = torch.tensor(facts.eos_token_ids, dtype=torch.long, device=device)
        # The column of each row's leftmost open target that still matters; `length` where none does.
        self.next_open: list[int] = []
        self._troubles: list[tuple[Tensor, DllmSamplingError]] = []
        self._sent: dict[str, Tensor] = {}
        self._carried: dict[str, list[list[int]]] = {}

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    # What policies read ------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Rows still in the batch."""
        return len(self.rows)

    @property
    def tokens(self) -> Tensor:
        return self._tokens[:, : self.length]

    @property
    def targets(self) -> Tensor:
        return self._targets[:, : self.length]

    @property
    def masked(self) -> Tensor:
        return self._masked[:, : self.length]

    @property
    def valid(self) -> Tensor:
        return self._valid[:, : self.length]

    @property
    def position_ids(self) -> Tensor:
        return self._position_ids[:, : self.length]

    @property
    def committed_at(self) -> Tensor:
        return self._committed_at[:, : self.length]

    @property
    def committed_confidence(self) -> Tensor:
        return self._confidence[:, : self.length]

    @property
    def progress(self) -> Tensor:
        """Share of each row's targets that are committed, `[batch]` float32."""
        total = self._targets.sum(1)
        return 1 - self._masked.sum(1) / total.clamp_min(1)

    @property
    def finished(self) -> bool:
        """Whether no row is left."""
        return not self.rows

    def memory(self, policy: object) -> Memory:
        """What `policy` remembers in this run: empty at its start, kept for its slot alone.

        Tensors put there must have the batch as their first dimension: the engine drops the rows
        that leave.
        """
        return self._memories[self._slot(policy)]

    def _slot(self, policy: object) -> str:
        try:
            return self._slots[id(policy)]
        except KeyError:
            raise DecodingError(
                f"{type(policy).__name__} asked for memory but is not part of this run; only policies "
                "given to the Sampler, and the policies in their fields, have any."
            ) from None

    def carry(self, policy: object, values: Tensor) -> None:
        """Send integers `[batch, n]` to the host with this step's read-back, at no further cost.

        To be called in any hook of a step up to `committed`; `carried` has them from the next step on.
        """
        slot = self._slot(policy)
        if values.ndim != 2 or len(values) != self.batch or values.is_floating_point():
            raise PluginError(
                f"{type(policy).__name__} ({slot}) carries {values.dtype} {list(values.shape)}; it must be "
                f"integers [{self.batch}, any]."
            )
        self._sent[slot] = values.long()

    def carried(self, policy: object) -> list[list[int]] | None:
        """What the policy carried last, a list of integers for each row now in the batch; None at first."""
        return self._carried.get(self._slot(policy))

    def trouble(self, found: Tensor, error: DllmSamplingError) -> None:
        """Raise `error` when this step is read back, if the bool scalar `found` is true.

        So the values of tensors are checked without waiting for the device.
        """
        self._troubles.append((found, error))

    def gather(self, values: Tensor, positions: Tensor) -> Tensor:
        """`values [batch, length]` at `positions [batch, n]`; entry 0's value where a position is -1."""
        return values.gather(1, positions.clamp_min(0))

    def at(self, values: Tensor, positions: slice | Tensor) -> Tensor:
        """`values [batch, length]` at a slice or at `positions [batch, n]`."""
        return values[:, positions] if isinstance(positions, slice) else self.gather(values, positions)

    def placed(
        self, into: Tensor, positions: Tensor, values: Tensor | float, where: Tensor | None = None
    ) -> Tensor:
        """A copy of `into [batch, length]` with `values` at `positions [batch, n]`, but not at -1.

        where: bool `[batch, n]`, the positions that are meant; all by default.
        """
        left_out = positions < 0 if where is None else ~where | (positions < 0)
        padded = torch.nn.functional.pad(into, (0, 1))  # what is left out lands in a column of its own
        index = positions.masked_fill(left_out, self.length)
        written: Tensor = padded.scatter(1, index, values)
        return written[:, : self.length]

    def on_device(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Host integers as a tensor on the run's device, without waiting for it."""
        return row_index(numbers, self._tokens.device)

    def uniform(self, policy: object, positions: Tensor) -> Tensor:
        """Random numbers in (0, 1), float64, one a position of `[batch, n]`.

        A function of the row's seed, the position in the row's own text, the row's clock and the
        policy's slot, so a row draws the same numbers alone and in any batch.
        """
        keys = self.noise_keys(positions, self._slot(policy))
        return noise.uniform(keys)

    def noise_keys(self, positions: Tensor, purpose: str) -> Tensor:
        """The 64-bit keys of the row's noise at `positions [batch, n]`, for one purpose."""
        ids = self.gather(self.position_ids, positions)
        return noise.keys(self.seeds[:, None], self.row_steps[:, None], ids, purpose)

    # What the engine does ----------------------------------------------------------------------

    def begin_block(self) -> None:
        """Set the clocks of the block to zero."""
        self.block_forwards = 0
        self.block_steps = torch.zeros_like(self.block_steps)

    def commit(
        self, region: Region, plan: ForwardPlan, observation: Observation, decision: Decision
    ) -> Decision:
        """Apply a decision under the progress guard; return what was done.

        Only eligible positions are committed and only fresh committed targets are overwritten or
        remasked. A step whose net commits n fall short of 1 costs the row 1 - n idle steps; a row
        without that many left has its remasks dropped and, if it still commits nothing, its most
        confident eligible position of the leftmost unfinished block is committed and counted as
        forced. So no row takes more than idle_steps + targets steps.
        """
        active = observation.masked.any(1)
        # A row that waits for others is not written, so that what it gets does not depend on them.
        changeable = observation.committed & active[:, None]
        commit = decision.commit & observation.eligible
        remask = None if decision.remask is None else decision.remask & changeable
        gain = commit.sum(1)
        idle = gain == 0
        cost = 1 - gain if remask is None else 1 - gain + remask.sum(1)
        cost = cost.clamp_min(0) * active
        broke = cost > self.idle_left
        forced = _most_confident(observation) & (broke & idle)[:, None]
        commit = commit | forced
        self.idle_left = self.idle_left - cost.masked_fill(broke, 0)

        tokens = observation.tokens
        if decision.tokens is not None:
            tokens = decision.tokens.where(self.facts.allowed[decision.tokens], tokens)
        if remask is not None:
            remask = remask & ~broke[:, None]
        written, overwrite = commit, decision.overwrite
        if overwrite is not None:
            overwrite = overwrite & changeable
            overwrite = overwrite if remask is None else overwrite & ~remask
            written = commit | overwrite
        confidence = observation.log_confidence_of(tokens).exp().float()
        self._write(region, self._tokens, tokens, written)
        self._write(region, self._confidence, confidence, written)
        self._write(region, self._committed_at, self.forward_index, written)
        self._write(region, self._masked, False, commit)
        if remask is not None:
            self._write(region, self._tokens, self.facts.mask_token_id, remask)
            self._write(region, self._confidence, torch.nan, remask)
            self._write(region, self._committed_at, -1, remask)
            self._write(region, self._masked, True, remask)
            self.row_remasks = self.row_remasks + remask.sum(1)
        if decision.finish is not None:
            self._ended = self._ended | (decision.finish & active)
        self.row_forced = self.row_forced + forced.sum(1)
        self.row_steps = self.row_steps + active
        self.block_steps = self.block_steps + active
        self.forward_index += 1
        self.block_forwards += 1
        self.row_refreshes = self.row_refreshes + (active & plan.refreshed(self))

        self._note_troubles(observation, active, stuck=broke & idle & ~forced.any(1))
        return Decision(commit, tokens, overwrite, remask, decision.finish)

    def _note_troubles(self, observation: Observation, active: Tensor, stuck: Tensor) -> None:
        """What would go wrong for ever, or has gone wrong in the model."""
        forward = self.forward_index - 1
        broken = observation.log_confidence.isnan() & observation.masked & observation.fresh
        self.trouble(
            broken.any(),
            DecodingError(
                f"the logits of forward {forward} hold NaN, or nothing but minus infinity: the weights, the "
                "dtype, a visible set or a logits transform are broken."
            ),
        )
        self.trouble(
            stuck.any(),
            DecodingError(
                f"forward {forward} predicted none of a row's open targets: the cache policy "
                f"{self._names.get('cache')!r} did not recompute them."
            ),
        )
        self.trouble(
            ~active.any(),
            PluginError(
                f"the region of forward {forward} held no open target of any row, so nothing could be "
                f"committed: the block schedule {self._names.get('schedule')!r}, or a wrapper around its "
                "plan_region, must offer one."
            ),
        )

    def read_back(self) -> None:
        """Learn which rows are done, and whether the last commit met trouble."""
        masked = self.masked & ~self._ended[:, None]
        if self.stop_at_eos:
            is_eos = (self.tokens[..., None] == self._eos).any(-1) & self.targets & ~self.masked
            masked = masked & ~(is_eos.long().cumsum(1) > 0)
        first = torch.where(masked, self.columns, self.length).amin(1)
        # What a finished row leaves open is no target any more.
        self.masked.logical_and_((first < self.length)[:, None])
        # The one host synchronisation of a step.
        sent = [values.flatten() for values in self._sent.values()]
        troubles, self._troubles = self._troubles, []
        flags = [torch.stack([found for found, _ in troubles]).long()] if troubles else []
        numbers = torch.cat([*flags, first, *sent]).tolist()
        for (_, error), found in zip(troubles, numbers, strict=False):
            if found:
                raise error
        numbers = numbers[len(troubles) :]
        self.next_open, numbers = numbers[: self.batch], numbers[self.batch :]
        for slot, values in self._sent.items():
            rows, width = values.shape
            self._carried[slot] = [numbers[i * width : (i + 1) * width] for i in range(rows)]
            numbers = numbers[rows * width :]
        self._sent = {}

    def end_rows(self, rows: Tensor) -> None:
        """End rows, bool `[batch]`, between two steps: their text ends before their leftmost open target."""
        open_from = self.on_device(self.next_open)
        self.masked.logical_and_(~rows[:, None])
        self.committed_at.masked_fill_(rows[:, None] & (self.columns >= open_from[:, None]), -1)
        ended = rows.tolist()
        self.next_open = [self.length if e else at for e, at in zip(ended, self.next_open, strict=True)]

    def select_rows(self, keep: Sequence[int]) -> Tensor:
        """Drop all rows but `keep` (indices into the current batch); return them as a tensor."""
        index, batch = row_index(keep, self._tokens.device), self.batch
        self.rows = [self.rows[i] for i in keep]
        self.next_open = [self.next_open[i] for i in keep]
        self.row_ends = [self.row_ends[i] for i in keep]
        self._carried = {slot: [rows[i] for i in keep] for slot, rows in self._carried.items()}
        for name in _ROW_TENSORS:
            setattr(self, name, getattr(self, name).index_select(0, index))
        if self.targets_in_block is not None:
            self.targets_in_block = self.targets_in_block.index_select(0, index)
        for slot, memory in self._memories.items():
            for key, value in memory.items():
                if isinstance(value, Tensor):
                    if value.ndim == 0 or len(value) != batch:
                        raise PluginError(
                            f"{slot} remembers {key!r} as a tensor {list(value.shape)}: its first dimension "
                            f"must be the batch, {batch}."
                        )
                    memory[key] = value.index_select(0, index)
        return index

    def _write(self, region: Region, into: Tensor, values: Tensor | float, where: Tensor) -> None:
        if region.span is not None:
            view = into[:, region.span]
            if isinstance(values, Tensor):
                view.copy_(torch.where(where, values, view))
            else:
                view.masked_fill_(where, values)
            return
        positions = region.positions.masked_fill(region.positions < 0, self.length)
        into.scatter_(1, positions, torch.where(where, values, into.gather(1, positions)))


_ROW_TENSORS = (
    "_tokens", "_targets", "_masked", "_valid", "_position_ids", "_committed_at", "_confidence",
    "seeds", "row_steps", "block_steps", "row_forced", "row_remasks", "row_refreshes", "idle_left", "_ended",
    "end_of_targets",
)  # fmt: skip


def _with_scratch(tensor: Tensor) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 1))


def _most_confident(observation: Observation) -> Tensor:
    """The single best position of each row: eligible before merely masked, lowest block first."""
    fresh = observation.masked & observation.fresh
    candidates = torch.where(observation.eligible.any(1, keepdim=True), observation.eligible, fresh)
    none = torch.iinfo(torch.long).max
    leftmost = observation.blocks.masked_fill(~candidates, none).amin(1, keepdim=True)
    candidates = candidates & (observation.blocks == leftmost)
    scores = observation.log_confidence.masked_fill(~candidates, -torch.inf)
    # A candidate may score -inf itself; argmax of the mask breaks that tie in its favour.
    best = scores.amax(1, keepdim=True)
    first = ((scores == best) & candidates).long().argmax(1, keepdim=True)
    return torch.zeros_like(candidates).scatter(1, first, True) & candidates


def row_index(rows: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Integers as a tensor on the device, without waiting for it."""
    index = torch.tensor(rows, dtype=torch.long)
    # Pinned, so that the copy does not wait for the device.
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index
