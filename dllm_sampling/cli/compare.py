"""The work of `compare`, `report` and `studies`."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from rich.cells import cell_len
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from dllm_sampling.cli.terminal import Screen, shown
from dllm_sampling.errors import ConfigurationError, unknown_name
from dllm_sampling.inputs.config_files import read_mapping
from dllm_sampling.study import Executor, LocalExecutor, Progress, RayExecutor, Results, Study, StudyConfig
from dllm_sampling.study import report as reports
from dllm_sampling.study.cells import matching
from dllm_sampling.study.config import shipped
from dllm_sampling.study.folder import logger
from dllm_sampling.study.metrics import METRICS, NO_DIFFERENCE, Row
from dllm_sampling.study.text import shortened, unbroken
from dllm_sampling.study.work import CellFailure

_err = Screen(stderr=True)
_METRICS = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True)
class Options:
    """The command's options."""

    study: str
    output: Path | None
    limit: int | None
    only: str | None
    fresh: bool
    executor: str
    workers: int | None
    ray_address: str | None
    shard: str
    quiet: bool

    def read(self) -> Study:
        """The study."""
        return Study.read(StudyConfig.find(self.study), limit=self.limit)

    @property
    def folder(self) -> Path:
        """The results folder."""
        return self.output or Path("results") / StudyConfig.find(self.study).stem


def run(options: Options) -> int:
    """Run what is missing, print and write the report; 1 where a cell failed."""
    shard, executor = _shard(options.shard), _executor(options)
    study = options.read()
    with _terminated(), _shown(options.quiet) as watch:
        results = study.run(
            options.folder,
            only=options.only,
            fresh=options.fresh,
            shard=shard,
            executor=executor,
            watch=watch,
        )
    if shard[1] > 1:
        _print_aside(
            f"shard {options.shard} is in {results.folder.path}; when all are: "
            f"dllm-sampling compare {options.study} --output {options.folder} --merge"
        )
    else:
        _report(results)
    return _failed(results)


def merge(options: Options) -> int:
    """Put shards together and report them; 1 where a cell failed."""
    with _shown(options.quiet):
        results = options.read().merge(options.folder)
    if results.unfinished:
        _print_aside(f"{len(results.unfinished)} cells are not finished: see {options.folder / 'log.txt'}")
    _report(results)
    return _failed(results)


def report(folder: Path, output: Path | None) -> None:
    """Write a folder's report anew."""
    _report(Results(folder), output)


def _failed(results: Results) -> int:
    for message in results.failed.values():
        _print_aside(f"failed: {message}")
    return 1 if results.failed else 0


def studies() -> None:
    """List what ships."""
    lines = [[name, str(read_mapping(path).get("name", ""))] for name, path in shipped().items()]
    _print_table(["name", "what it compares"], lines)


def dry_run(options: Options) -> int:
    """List the cells, with what each would cost by a probe of a few steps; 1 where one cannot be run."""
    study = options.read()
    cells = matching(study.cells, options.only)
    _shard(options.shard), _executor(options)  # errors in them are told now
    _print_aside(f"probing {len(cells)} cells, a few steps each")
    total, failures = 0.0, []
    lines = []
    for cell, probe in study.probe(cells):
        if isinstance(probe, CellFailure):
            cost = "cannot be run"
            failures.append(f"{cell.title}: {probe.message}")
        else:
            seconds = probe.seconds_for(cell)
            total += seconds
            cost = _duration(seconds)
        lines.append([cell.title, str(cell.examples), str(cell.batches), cost])
    _print_table(["cell", "prompts", "batches", "at most"], lines)
    _print(
        f"{len(cells)} cells, at most about {_duration(total)} one after the other on this machine: "
        "answers that end early cost less."
    )
    for failure in failures:
        _print_aside(f"failed: {failure}")
    return 1 if failures else 0


def _report(results: Results, output: Path | None = None) -> None:
    path = reports.write(results, output)
    for (model, task), rows in results.groups.items():
        where = unbroken(f"{model}, {task}")
        _print(f"\n{where}: {rows[0].columns.prompts} prompts, 95 % intervals")
        _print_table(*_table(rows))
    for warning in results.warnings:
        _print_aside(f"warning: {warning}")
    _print(f"\nreport: {path}")


def _table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    names = ["accuracy", "tokens_per_forward", "speedup", "agreement"]
    if any(row.estimates["forced_share"].value for row in rows):
        names.append("forced_share")
    headings = ["sampler", *(_METRICS[name].title for name in names), "accuracy against baseline"]
    lines = []
    for row in rows:
        cells = [row.sampler]
        for name in names:
            found = row.estimates.get(name)
            cells.append("" if found is None else reports.with_interval(found, _METRICS[name]))
        difference = row.estimates.get("accuracy_difference")
        metric = _METRICS["accuracy_difference"]
        if row.is_baseline:
            cells.append("baseline")
        elif difference is None:
            cells.append("")
        else:
            verdict = row.verdict(metric)
            shown_difference = reports.with_interval(difference, metric)
            cells.append(
                shown_difference if verdict != NO_DIFFERENCE else f"{shown_difference} {NO_DIFFERENCE}"
            )
        lines.append(cells)
    return headings, lines


def _print_table(headings: list[str], lines: list[list[str]]) -> None:
    """Print a table whole, a line a row: a narrow terminal wraps its lines, nothing is cut.

    The first column stands left, the others right. Cells are text: rich's own table would read markup
    in them and take control characters out.
    """
    cells = [[shown(unbroken(text), sys.stdout) for text in line] for line in [headings, *lines]]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for first, *rest in cells:
        line = [first + " " * (widths[0] - cell_len(first))]
        line += [" " * (width - cell_len(text)) + text for text, width in zip(rest, widths[1:], strict=True)]
        _print("  ".join(line).rstrip())


def _print(text: str) -> None:
    _write(text, sys.stdout)


def _print_aside(text: str) -> None:
    _write(unbroken(text), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    """Print a line; a stream that cannot hold a letter gets its escape."""
    text = shown(text, stream)
    coding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(coding, "backslashreplace").decode(coding), file=stream, flush=True)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigurationError(f"--shard is written I/N with 1 <= I <= N, such as 2/8; got {text!r}.")
    return int(match[1]), int(match[2])


def _executor(options: Options) -> Executor:
    if options.executor == RayExecutor.name:
        return RayExecutor(options.ray_address, options.workers)
    if options.executor != LocalExecutor.name:
        known = (LocalExecutor.name, RayExecutor.name)
        raise ConfigurationError(unknown_name("executor", options.executor, known))
    for option, value in (("--workers", options.workers), ("--ray-address", options.ray_address)):
        if value is not None:
            raise ConfigurationError(f"{option} has no effect without --executor ray.")
    return LocalExecutor()


@contextmanager
def _shown(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Progress on a terminal, log lines elsewhere."""
    handler: logging.Handler = (
        _Console(logging.WARNING) if quiet or _err.is_terminal else _Console(logging.INFO)
    )
    logger.addHandler(handler)
    logger.propagate = False
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    try:
        with Bar(*columns, console=_err, transient=True, disable=quiet or not _err.is_terminal) as bar:
            task = bar.add_task("starting", total=None)

            def watch(progress: Progress) -> None:
                bar.update(
                    task,
                    total=progress.batches,
                    completed=progress.batches_done,
                    description=shortened(progress.doing or "starting", 60),
                )

            yield watch
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{stamp} {prefix}{unbroken(record.getMessage())}"
        if _err.is_terminal:  # above the progress bar
            _err.print(Text(shown(line, sys.stderr)))
        else:
            _print_aside(line)


@contextmanager
def _terminated() -> Iterator[None]:
    """A SIGTERM, as schedulers send it, ends the run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _print_aside("interrupted: the same command goes on from here")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
