"""What became of a batch: kept on the device while it runs, put together at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm_sampling.backbones.forward import Forward
from dllm_sampling.engine.prompts import Batch, Canvas
from dllm_sampling.state.decoding_state import DecodingState, row_index
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.result import GenerationResult


class Outcome:
    """The rows of one batch as they finish, and the counts of its forwards."""

    def __init__(self, batch: Batch, facts: ModelFacts, prompt_width: int | None) -> None:
        self.batch = batch
        self._facts = facts
        self._prompt_width = prompt_width
        self.forwards = 0
        self.refreshes = 0
        self.positions_computed = 0
        self.seconds = 0.0
        self.refresh_seconds = 0.0
        self.compile_seconds = 0.0
        self.stop_at_eos = False
        self._records: list[tuple[list[int], dict[str, Tensor]]] = []
        self._width = 0

    def result(self) -> GenerationResult:
        """What this batch alone came to."""
        return merged([self], self.batch.canvases, self._prompt_width, self._facts)

    def count(self, forward: Forward, rows: int, seconds: float, *, refresh: bool) -> None:
        """Add a forward of `rows` rows, and the seconds that it took, compiling included."""
        self.compile_seconds += forward.compile_seconds
        seconds -= forward.compile_seconds
        self.forwards += 1
        self.refreshes += refresh
        self.positions_computed += forward.width * rows
        self._width += forward.width
        self.seconds += seconds
        self.refresh_seconds += seconds if refresh else 0.0

    def record(self, state: DecodingState, rows: list[int]) -> None:
        """Keep what the finished `rows` (indices into the current batch) have come to."""
        self.stop_at_eos = state.stop_at_eos
        index = row_index(rows, state.tokens.device)
        kept = {
            "tokens": state.tokens,
            "committed_at": state.committed_at,
            "confidence": state.committed_confidence,
            "row_forwards": state.row_steps + state.tensors.forwards_beside,
            "row_forced": state.row_forced,
            "row_remasks": state.row_remasks,
            "row_refreshes": state.row_refreshes,
        }
        taken = {name: tensor.index_select(0, index) for name, tensor in kept.items()}
        taken["row_positions_computed"] = torch.full((len(rows),), self._width)
        self._records.append(([state.rows[i] for i in rows], taken))

    def rows(self, facts: ModelFacts) -> dict[int, dict[str, Tensor]]:
        """Each canvas's own columns on the host, by its place in the call."""
        found = {}
        for rows, tensors in self._records:
            host = {name: tensor.cpu() for name, tensor in tensors.items()}
            for i, row in enumerate(rows):
                canvas, start = self.batch.canvases[row], self.batch.starts[row]
                span = slice(start, start + len(canvas.tokens))
                values = {name: t[i, span] if t.ndim == 2 else t[i] for name, t in host.items()}
                found[canvas.index] = self._finished(canvas, values, facts)
        return found

    def _finished(self, canvas: Canvas, values: dict[str, Tensor], facts: ModelFacts) -> dict[str, Tensor]:
        """Count tokens to the first end of sequence, and turn what is not text into padding."""
        written = canvas.targets & (values["committed_at"] >= 0)
        ends = torch.isin(values["tokens"], torch.tensor(facts.eos_token_ids)) & written
        after_end = ends.long().cumsum(0) - ends.long() > 0
        blank = canvas.targets & ~written
        if self.stop_at_eos:
            blank = blank | (after_end & canvas.targets)
        values["tokens"] = values["tokens"].masked_fill(blank, facts.pad_token_id)
        values["committed_at"] = values["committed_at"].masked_fill(blank, -1)
        values["confidence"] = values["confidence"].masked_fill(blank, torch.nan)
        # A position that was masked again had been committed before; one behind the end counts, too.
        values["row_commits"] = written.sum() + values["row_remasks"]
        values["count"] = (written & ~after_end).sum()
        values["text"] = written & ~after_end & ~ends
        return values


def merged(
    outcomes: Sequence[Outcome], canvases: Sequence[Canvas], prompt_width: int | None, facts: ModelFacts
) -> GenerationResult:
    """One result from the outcomes of several batches, rows in the order of the call.

    prompt_width: columns of the prompts; None for canvases that are returned as they were given.
    """
    rows: dict[int, dict[str, Tensor]] = {}
    for outcome in outcomes:
        rows |= outcome.rows(facts)
    order = sorted(canvases, key=lambda canvas: canvas.index)
    ordered = [rows[canvas.index] for canvas in order]
    gen = None if prompt_width is None else order[0].after
    width = max(len(c.tokens) for c in order) if gen is None else (prompt_width or 0) + gen

    def stacked(name: str, fill: float) -> Tensor:
        out = torch.full((len(ordered), width), fill, dtype=ordered[0][name].dtype)
        for i, values in enumerate(ordered):
            length = len(values[name])
            # Prompts are padded on the left, canvases to fill on the right.
            out[i, slice(0, length) if gen is None else slice(width - length, width)] = values[name]
        return out

    def scalars(name: str) -> Tensor:
        return torch.stack([values[name] for values in ordered])

    tail = slice(None) if gen is None else slice(width - gen, width)
    return GenerationResult(
        sequences=stacked("tokens", facts.pad_token_id),
        forward_of_position=stacked("committed_at", -1)[:, tail],
        confidence=stacked("confidence", torch.nan)[:, tail],
        tokens=scalars("count"),
        row_forwards=scalars("row_forwards"),
        row_forced=scalars("row_forced"),
        row_remasks=scalars("row_remasks"),
        row_refreshes=scalars("row_refreshes"),
        row_positions_computed=scalars("row_positions_computed"),
        row_commits=scalars("row_commits"),
        forwards=sum(outcome.forwards for outcome in outcomes),
        refreshes=sum(outcome.refreshes for outcome in outcomes),
        positions_computed=sum(outcome.positions_computed for outcome in outcomes),
        seconds=sum(outcome.seconds for outcome in outcomes),
        refresh_seconds=sum(outcome.refresh_seconds for outcome in outcomes),
        compile_seconds=sum(outcome.compile_seconds for outcome in outcomes),
        texts=[_text(c, v, facts, whole=gen is None) for c, v in zip(order, ordered, strict=True)],
    )


def _text(canvas: Canvas, values: dict[str, Tensor], facts: ModelFacts, whole: bool) -> str:
    if facts.tokenizer is None:
        return ""
    kept = values["tokens"][values["text"] | (~canvas.targets if whole else values["text"])]
    return str(facts.tokenizer.decode(kept.tolist(), skip_special_tokens=True))
