"""Runs a study: what is missing is computed, written and counted, batch by batch."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dllm_sampling.errors import ConfigurationError, DllmSamplingError, StudyError
from dllm_sampling.plugins.blame import Blame
from dllm_sampling.study import manifests, provenance
from dllm_sampling.study.cells import Cell, Unit, cells_of, matching, units_of
from dllm_sampling.study.code import digest
from dllm_sampling.study.config import StudyConfig, TaskEntry
from dllm_sampling.study.executors import Executor, Finished, LocalExecutor
from dllm_sampling.study.folder import ResultsFolder, logger
from dllm_sampling.study.records import SCHEMA_VERSION
from dllm_sampling.study.results import Results
from dllm_sampling.study.text import one_line
from dllm_sampling.study.work import CellFailure, Probe, Worker, scores
from dllm_sampling.tasks import Example


@dataclass
class Progress:
    """How far a run is: batches and cells, and the last thing that happened."""

    batches: int
    cells: int
    batches_done: int = 0
    cells_done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    doing: str = ""


class Study:
    """Samplers on tasks with models and seeds, compared with one of the samplers.

    Args:
        config: A resolved study; `Study.read` takes a file, `Study.of` plain data.
        limit: Only so many examples of each task.
        folder: Where the git state is read that results record; by default the working directory.

    Raises:
        ConfigurationError: Something cannot work; raised before anything runs.
    """

    def __init__(self, config: StudyConfig, *, limit: int | None = None, folder: Path | None = None) -> None:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigurationError(f"limit must be at least 1 and whole, got {limit!r}.")
        self.config = config
        self._limit = limit
        self._folder = folder

    @classmethod
    def of(cls, data: Mapping[str, Any], *, limit: int | None = None) -> Study:
        """A study from plain data.

        Args:
            data: What a file would hold.
            limit: Only so many examples of each task.

        Returns:
            The study.

        Raises:
            ConfigurationError: Something is unknown or cannot work.
        """
        return cls(StudyConfig.of(data), limit=limit)

    @classmethod
    def read(cls, path: str | Path, *, limit: int | None = None) -> Study:
        """A study from a file.

        Args:
            path: A .yaml, .toml or .json file.
            limit: Only so many examples of each task.

        Returns:
            The study.

        Raises:
            ConfigurationError: Something is unknown or cannot work.
        """
        return cls(StudyConfig.read(path), limit=limit, folder=Path(path).resolve().parent)

    @cached_property
    def examples(self) -> dict[str, Sequence[Example]]:
        """The examples of each task, by its name in the study.

        Raises:
            ConfigurationError: The examples of a task cannot be read; the error names it.
        """
        found = {}
        for entry in self.config.tasks:
            examples = _examples_of(entry)
            most = [n for n in (entry.limit, self._limit) if n is not None]
            found[entry.name] = examples[: min(most)] if most else examples
        return found

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell, in the order of the file."""
        return cells_of(self.config, self.examples)

    def run(
        self,
        output: str | Path,
        *,
        only: str | None = None,
        fresh: bool = False,
        shard: tuple[int, int] = (1, 1),
        executor: Executor | None = None,
        watch: Callable[[Progress], None] | None = None,
    ) -> Results:
        """Run what is missing in a results folder.

        Stopped at any moment, it loses at most the batches in hand; the same call goes on from there.

        Args:
            output: The folder.
            only: A shell pattern, or a part, of the cells' titles or the samplers' names.
            fresh: Forget the records of these cells first.
            shard: (i, n), i from 1: every n-th batch, into the folder `output/shards/i-of-n`, for `merge`.
            executor: Where batches are decoded; by default in this process.
            watch: Called after every batch.

        Returns:
            What is in the folder afterwards.

        Raises:
            ConfigurationError: An argument cannot work.
            StudyError: The folder is in use, damaged or another study's.
        """
        index, count = shard
        if not 1 <= index <= count:
            raise ConfigurationError(f"shard {index}/{count}: shards are counted from 1 to their number.")
        cells = matching(self.cells, only)
        folder = ResultsFolder(output)
        if count > 1:
            folder = folder.shard(index, count)
        executor = executor or LocalExecutor()
        with folder.locked(), _logged_to(folder.path / "log.txt"):
            if fresh:
                for cell in cells:
                    folder.forget(cell)
            else:
                self._refuse_another(folder, ResultsFolder(output))
            self._run(folder, cells, executor, shard, watch or (lambda progress: None))
        return Results(folder)

    def _refuse_another(self, *folders: ResultsFolder) -> None:
        for folder in folders:
            manifests.refuse_another(
                folder.path, folder.manifest(), self.config.name, self.cells, folder.holds
            )

    def _run(
        self,
        folder: ResultsFolder,
        cells: list[Cell],
        executor: Executor,
        shard: tuple[int, int],
        watch: Callable[[Progress], None],
    ) -> None:
        log = self._begin(folder, executor, shard)
        missing = {cell.id: set(folder.missing(cell)) for cell in cells}
        units = [u for u in units_of(_distinct(cells), shard) if u.batch in missing[u.cell.id]]
        progress = Progress(len(units), len(missing))
        for cell in _distinct(cells):
            if self._rescored(folder, cell, progress) and not missing[cell.id]:
                self._finish(folder, cell)
                progress.cells_done += 1
        logger.info(
            "%s: %d cells, %d of them finished before; %d batches to run",
            self.config.name, len(missing), progress.cells_done, len(units),
        )  # fmt: skip

        def wanted() -> Iterator[Unit]:
            for unit in units:
                if unit.cell.id not in progress.failed:
                    progress.doing = f"{unit.cell.sampler}, batch {unit.batch + 1} of {unit.cell.batches}"
                    yield unit

        begun = time.perf_counter()
        try:
            watch(progress)
            for finished in executor.run(wanted(), self._by_id()):
                self._take(folder, finished, missing, progress)
                watch(progress)
        except BaseException as error:
            logger.warning(
                "stopped by %s after %d of %d batches; the same command goes on from here",
                type(error).__name__, progress.batches_done, progress.batches,
            )  # fmt: skip
            log["stopped_by"] = type(error).__name__
            with suppress(StudyError):  # on a full disk, the first error is the one to show
                self._end(folder, log, progress)
            raise
        self._end(folder, log, progress)
        logger.info(
            "done: %d batches in %.1f s, %d of %d cells finished, %d failed",
            progress.batches_done, time.perf_counter() - begun, progress.cells_done, progress.cells,
            len(progress.failed),
        )  # fmt: skip

    def _end(self, folder: ResultsFolder, log: dict[str, Any], progress: Progress) -> None:
        log["finished"] = _now()
        log["batches"] = progress.batches_done
        log["failed"] = dict(progress.failed)
        self._write_manifest(folder, log)

    def _take(
        self, folder: ResultsFolder, finished: Finished, missing: dict[str, set[int]], progress: Progress
    ) -> None:
        unit = finished.unit
        if finished.failure is not None:
            if unit.cell.id not in progress.failed:
                _failed(unit.cell, finished.failure, progress)
            return
        folder.write(unit, finished.rows)
        progress.batches_done += 1
        missing[unit.cell.id].discard(unit.batch)
        right = sum(row["correct"] for row in finished.rows)
        logger.info(
            "%d/%d  %s, batch %d of %d: %d of %d right, %.2f s (%s)",
            progress.batches_done, progress.batches, unit.cell.title, unit.batch + 1, unit.cell.batches,
            right, len(finished.rows), sum(row["seconds"] for row in finished.rows), finished.where,
        )  # fmt: skip
        if not missing[unit.cell.id]:
            self._finish(folder, unit.cell)
            progress.cells_done += 1

    def _rescored(self, folder: ResultsFolder, cell: Cell, progress: Progress) -> bool:
        """Bring a cell's scores up to date with its checker; whether that went well."""
        examples = self.examples[cell.task]
        try:
            count = folder.rescore(cell, lambda places, texts: scores(cell, examples, places, texts))
        except CellFailure as failure:
            _failed(cell, failure, progress)
            return False
        if count:
            logger.info("%s: %d texts on record scored again, by another checker", cell.title, count)
        return True

    @staticmethod
    def _finish(folder: ResultsFolder, cell: Cell) -> None:
        if folder.has_parts(cell):
            folder.finish(cell)

    def merge(self, output: str | Path) -> Results:
        """Put the shards of a results folder together.

        Args:
            output: The folder.

        Returns:
            What is in it afterwards.

        Raises:
            StudyError: It has no shards, or they are another study's.
        """
        folder = ResultsFolder(output)
        shards = folder.shards()
        if not shards:
            raise StudyError(f"{folder.path / 'shards'} holds no shards to merge.")
        with folder.locked(), _logged_to(folder.path / "log.txt"):
            self._refuse_another(folder, *shards)
            log = self._begin(folder, None, (1, 1), writes=False)
            runs = []
            for shard in shards:
                runs += (shard.manifest() or {}).get("runs", [])
            progress = Progress(0, len(_distinct(self.cells)))
            for cell in _distinct(self.cells):
                for shard in shards:
                    folder.take_over(cell, shard)
                missing = folder.missing(cell)
                scored = self._rescored(folder, cell, progress)
                if scored and not missing:
                    self._finish(folder, cell)
                elif missing:
                    logger.warning("%s: %d of %d batches missing", cell.title, len(missing), cell.batches)
            log["finished"], log["merged"], log["failed"] = _now(), runs, progress.failed
            self._write_manifest(folder, log)
            logger.info("merged %d shards", len(shards))
        return Results(folder)

    def probe(self, cells: Sequence[Cell] | None = None) -> Iterator[tuple[Cell, Probe | CellFailure]]:
        """Time a few steps of cells.

        Args:
            cells: Which ones; by default all.

        Yields:
            Each cell with its times, or with a failure where it cannot be run.
        """
        worker = Worker(self._by_id())
        for cell in self.cells if cells is None else cells:
            try:
                yield cell, worker.probe(cell)
            except CellFailure as failure:
                yield cell, failure

    def _by_id(self) -> dict[str, Sequence[Example]]:
        return {cell.examples_id: self.examples[cell.task] for cell in self.cells}

    def _begin(
        self, folder: ResultsFolder, executor: Executor | None, shard: tuple[int, int], *, writes: bool = True
    ) -> dict[str, Any]:
        log: dict[str, Any] = {
            "started": _now(),
            "command": sys.argv,
            "executor": executor.name if executor is not None else "merge",
            "shard": f"{shard[0]}/{shard[1]}",
            "environment": provenance.environment(model.settings.device for model in self.config.models),
            "git": provenance.git_state(self._folder or Path.cwd()),
        }
        for cell in self.cells:
            folder.write_examples(cell.examples_id, self.examples[cell.task])
        if writes:
            self._write_manifest(folder, log)
        return log

    def _write_manifest(self, folder: ResultsFolder, log: dict[str, Any]) -> None:
        before = folder.manifest() or {}
        runs = [run for run in before.get("runs", []) if run["started"] != log["started"]]
        folder.write_manifest(
            {
                "version": manifests.VERSION,
                "records": SCHEMA_VERSION,
                "study": self.config.model_dump(mode="json"),
                "limit": self._limit,
                "checkpoints": {
                    model.name: provenance.checkpoint_hash(model.settings) for model in self.config.models
                },
                "cells": [cell.to_dict() for cell in self.cells],
                "runs": [*runs, log],
            }
        )


def _failed(cell: Cell, failure: CellFailure, progress: Progress) -> None:
    progress.failed[cell.id] = f"{cell.title}: {failure.message}"
    logger.error(
        "%s failed and is left out: %s", cell.title, failure.message, extra={"trace": failure.trace.rstrip()}
    )


def _examples_of(entry: TaskEntry) -> Sequence[Example]:
    """A task's examples, its own code's errors told as ours."""
    try:
        with Blame(f"{type(entry.task).__name__}.examples", entry.task.examples, ConfigurationError):
            found = list(entry.task.examples())
        wrong = next((example for example in found if not isinstance(example, Example)), None)
        if wrong is None:
            digest([[e.prompt, e.answer, dict(e.data)] for e in found])  # raises where it is no plain data
    except DllmSamplingError as error:
        raise type(error)(f"task {entry.name!r}: {error}") from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise ConfigurationError(
            f"task {entry.name!r}: its examples cannot be read: {type(error).__name__}: {error}"
        ) from error
    if wrong is not None:
        raise ConfigurationError(f"task {entry.name!r}: an example is {wrong!r}, not an Example.")
    if not found:
        raise ConfigurationError(f"task {entry.name!r} has no examples.")
    return found


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    """One cell of each id: two names for the same thing are computed once."""
    return list({cell.id: cell for cell in cells}.values())


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


class _Log(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A log that cannot be written stops nothing: records are what counts."""


class _Lines(logging.Formatter):
    """A record a line, whatever stands in names and messages; a failure's trace follows, set in."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{self.formatTime(record)} {record.levelname:<7} {one_line(record.getMessage())}"]
        lines += ["    " + one_line(line) for line in str(getattr(record, "trace", "")).splitlines()]
        return "\n".join(lines)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    try:
        handler = _Log(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror or error}.") from None
    handler.setFormatter(_Lines())
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
