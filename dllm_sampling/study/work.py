"""Runs one batch of one cell and makes its records."""

from __future__ import annotations

import itertools
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.config.run_config import ModelSettings
from dllm_sampling.engine import prompts
from dllm_sampling.engine.sampler import Sampler
from dllm_sampling.errors import PromptError
from dllm_sampling.plugins.blame import Blame
from dllm_sampling.state.result import GenerationResult
from dllm_sampling.study.cells import Cell, Unit
from dllm_sampling.tasks import Example

# Steps of a first, discarded run of every sampler: the first forwards of a shape choose kernels.
WARM_UP_STEPS = 3
_HALF = re.compile("[\ud800-\udfff]")
# What a probe spends on a cell.
_PROBE_STEPS = 12


@dataclass(frozen=True)
class Probe:
    """What a few steps of a cell took: seconds and tokens committed, over all rows."""

    seconds: float
    committed: int

    def seconds_for(self, cell: Cell) -> float:
        """What the whole cell would take at that pace, every target written."""
        return self.seconds / max(self.committed, 1) * cell.examples * cell.run.gen_length


class CellFailure(Exception):
    """A cell that cannot be run; the others go on. `trace` is for the log."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message, trace)
        self.message = message
        self.trace = trace

    @classmethod
    def of(cls, error: BaseException, where: str = "") -> CellFailure:
        """A failure from what went wrong in the cell. where: the place, in front of the message."""
        message = f"{type(error).__name__}: {error}"
        if where:
            # Each prompt is encoded on its own: its place among one says nothing.
            message = f"{where}: {re.sub('prompt 0', 'the prompt', message)}"
        return cls(message, "".join(traceback.format_exception(error)))


class Worker:
    """Holds the model of the cell at hand; decodes, checks and measures.

    examples: those of each task by `Cell.examples_id`. Only one model is held at a time.
    """

    def __init__(self, examples: dict[str, Sequence[Example]]) -> None:
        self._examples = examples
        self._model: tuple[ModelSettings, Backbone | CellFailure] | None = None
        self._plans: dict[tuple[str, str, bool, int], list[int] | CellFailure] = {}
        self._warm: set[str] = set()

    def records(self, unit: Unit) -> list[dict[str, Any]]:
        """The records of one batch: see `records.SCHEMA`.

        Raises CellFailure where this cell cannot be run; what ends the program is all that passes.
        """
        with _failures_of_the_cell():
            model = self._loaded(unit.cell.run.model)
            return self._records(unit, model, self._places(unit))

    def _records(self, unit: Unit, model: Backbone, places: list[int]) -> list[dict[str, Any]]:
        cell = unit.cell
        sampler = Sampler.from_config(model, cell.run.sampler)
        examples = [self._examples[cell.examples_id][place] for place in places]
        compiled = model.execution.compile_seconds
        if cell.id not in self._warm:
            self._steps(sampler, cell, places, WARM_UP_STEPS)
            self._warm.add(cell.id)
        memory = _PeakMemory(model.facts.device)
        result = sampler.generate(
            [example.prompt for example in examples],
            gen_length=cell.run.gen_length,
            seed=cell.run.seed,
            places=places,
            chat_template=cell.run.chat_template,
        )
        result = replace(result, compile_seconds=model.execution.compile_seconds - compiled)
        peak = memory.read()
        correct = scores(cell, self._examples[cell.examples_id], places, result.texts)
        return [_record(unit, place, result, row, correct[row], peak) for row, place in enumerate(places)]

    def probe(self, cell: Cell) -> Probe:
        """Time a few steps of the cell's middle batch; raises CellFailure as `records` does."""
        with _failures_of_the_cell():
            sampler = Sampler.from_config(self._loaded(cell.run.model), cell.run.sampler)
            places = self._places(Unit(cell, cell.batches // 2))
            self._steps(sampler, cell, places, WARM_UP_STEPS)
            return self._steps(sampler, cell, places, _PROBE_STEPS)

    def _steps(self, sampler: Sampler, cell: Cell, places: list[int], steps: int) -> Probe:
        """Take some steps and let the rest be."""
        run = sampler.steps(
            [self._examples[cell.examples_id][place].prompt for place in places],
            cell.run.gen_length,
            seed=cell.run.seed,
            places=places,
            chat_template=cell.run.chat_template,
        )
        begun, committed = time.perf_counter(), 0
        for step in itertools.islice(run, steps):
            committed += int((step.decision.commit & step.observation.eligible).sum())
        return Probe(time.perf_counter() - begun, committed)

    def _places(self, unit: Unit) -> list[int]:
        """The batch's prompts: a task's prompts by falling length, split into batches."""
        cell, size = unit.cell, unit.cell.run.sampler.batch_size
        key = (cell.run.model.model_dump_json(), cell.task, cell.run.chat_template, cell.run.gen_length)
        if key not in self._plans:
            try:
                self._plans[key] = self._planned(cell)
            except CellFailure as failure:
                self._plans[key] = failure  # of every sampler on these prompts
        plan = self._plans[key]
        if isinstance(plan, CellFailure):
            raise plan
        return plan[unit.batch * size : (unit.batch + 1) * size]

    def _planned(self, cell: Cell) -> list[int]:
        """The places of a task's prompts in the order in which they are decoded.

        All are encoded and checked against the model's context before the first is decoded.
        """
        facts = self._loaded(cell.run.model).facts
        canvases = []
        for place, example in enumerate(self._examples[cell.examples_id]):
            with _failures_of_the_cell(_row(cell, place)):
                if not isinstance(example.prompt, (str, Sequence)) or isinstance(example.prompt, bytes):
                    raise PromptError(
                        f"the prompt is {type(example.prompt).__name__}, not text or chat messages."
                    )
                if isinstance(example.prompt, str) and (half := _HALF.search(example.prompt)):
                    raise PromptError(
                        f"the prompt holds half a surrogate pair, \\u{ord(half[0]):x}, which is no character."
                    )
                ids = prompts.encode([example.prompt], None, facts, cell.run.chat_template)
                canvases += prompts.canvases_to_generate(ids, cell.run.gen_length, facts)
        numbered = [replace(canvas, index=place) for place, canvas in enumerate(canvases)]
        return [canvas.index for canvas in prompts.longest_first(numbered)]

    def _loaded(self, settings: ModelSettings) -> Backbone:
        if self._model is None or self._model[0] != settings:
            self._model = None  # lets go of the old weights before the new ones are read
            self._warm.clear()
            self._model = (settings, _load(settings))
        found = self._model[1]
        if isinstance(found, CellFailure):
            raise found
        return found


def _load(settings: ModelSettings) -> Backbone | CellFailure:
    """The model, or why it cannot be loaded: then the cells of the other models still run."""
    try:
        with _failures_of_the_cell():
            return settings.load()
    except CellFailure as failure:
        return failure


def scores(
    cell: Cell, examples: Sequence[Example], places: Sequence[int], texts: Sequence[str]
) -> list[bool]:
    """Whether each text is right; CellFailure, with task and row, where the task's checker breaks."""
    found = []
    for place, text in zip(places, texts, strict=True):
        blame = Blame(f"{type(cell.checker).__name__}.is_correct", cell.checker.is_correct)
        with _failures_of_the_cell(f"{_row(cell, place)}, the checker"), blame:
            found.append(bool(cell.checker.is_correct(text, examples[place])))
    return found


def _row(cell: Cell, place: int) -> str:
    return f"task {cell.task!r}, row {place + 1} of {cell.examples}"


@contextmanager
def _failures_of_the_cell(where: str = "") -> Iterator[None]:
    """Turn whatever goes wrong into a CellFailure, but for what the user or the system asks for.

    Code of others runs inside: `sys.exit` in it, or an outcome of a test framework, ends this cell alone.
    """
    try:
        yield
    except (CellFailure, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise CellFailure.of(error, where) from error


def _record(
    unit: Unit, place: int, result: GenerationResult, row: int, correct: bool, peak: int
) -> dict[str, Any]:
    tokens = int(result.tokens[row])
    gen_length = unit.cell.run.gen_length
    share = float(result.row_forwards[row]) / max(float(result.row_forwards.sum()), 1.0)
    return {
        "cell": unit.cell.id,
        "prompt": place,
        "batch": unit.batch,
        "text": result.texts[row],
        "token_ids": result.sequences[row, -gen_length:][:tokens].tolist(),
        "forward_of_position": result.forward_of_position[row, :tokens].tolist(),
        "tokens": tokens,
        "correct": correct,
        "row_forwards": int(result.row_forwards[row]),
        "refreshes": int(result.row_refreshes[row]),
        "positions_computed": int(result.row_positions_computed[row]),
        "forced": int(result.row_forced[row]),
        "commits": int(result.row_commits[row]),
        "remasks": int(result.row_remasks[row]),
        "seconds": result.seconds * share,
        "refresh_seconds": result.refresh_seconds * share,
        "compile_seconds": result.compile_seconds * share,
        "execution": result.execution,
        "peak_memory": peak,
    }


class _PeakMemory:
    """The most memory in use between its creation and `read`, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # elsewhere the peak is that of the process so far
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM

    def read(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
        except OSError:
            found = None
        if found:
            return int(found[1]) * 1024
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
