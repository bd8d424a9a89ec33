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
from typing import NoReturn

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from dllm_sampling.config import read_mapping
from dllm_sampling.errors import ConfigurationError, unknown_name
from dllm_sampling.study import Executor, LocalExecutor, Progress, RayExecutor, Results, Study, StudyConfig
from dllm_sampling.study import report as reports
from dllm_sampling.study.cells import matching
from dllm_sampling.study.config import shipped
from dllm_sampling.study.folder import logger
from dllm_sampling.study.metrics import METRICS, NO_DIFFERENCE, Row

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)
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
        _err.print(
            f"shard {options.shard} is in {results.folder.path}; when all are: "
            f"dllm-sampling compare {options.study} --output {options.folder} --merge",
            markup=False,
        )
    elif results.tables:
        _report(results)
    for message in results.failed.values():
        _err.print(f"failed: {message}", markup=False)
    return 1 if results.failed else 0


def merge(options: Options) -> None:
    """Put shards together and report them."""
    with _shown(options.quiet):
        results = options.read().merge(options.folder)
    if results.unfinished:
        _err.print(f"{len(results.unfinished)} cells are not finished: see {options.folder / 'log.txt'}")
    _report(results)


def report(folder: Path, output: Path | None) -> None:
    """Write a folder's report anew."""
    _report(Results(folder), output)


def studies() -> None:
    """List what ships."""
    table = Table("name", "what it compares", box=None, pad_edge=False)
    for name, path in shipped().items():
        table.add_row(name, str(read_mapping(path).get("name", "")))
    _wide(table)


def dry_run(options: Options) -> None:
    """List the cells, with what each would cost by a probe of a few steps."""
    study = options.read()
    cells = matching(study.cells, options.only)
    _shard(options.shard), _executor(options)  # errors in them are told now
    _err.print(f"probing {len(cells)} cells, a few steps each")
    total = 0.0
    table = Table("cell", "prompts", "batches", "at most", box=None, pad_edge=False)
    for cell, probe in study.probe(cells):
        seconds = probe.seconds_for(cell)
        total += seconds
        table.add_row(cell.title, str(cell.examples), str(cell.batches), _duration(seconds))
    _wide(table)
    _out.print(
        f"{len(cells)} cells, at most about {_duration(total)} one after the other on this machine: "
        "answers that end early cost less."
    )


def _report(results: Results, output: Path | None = None) -> None:
    path = reports.write(results, output)
    for (model, task), rows in results.groups.items():
        _out.print(f"\n{model}, {task}: {rows[0].columns.prompts} prompts, 95 % intervals")
        _wide(_table(rows))
    _out.print(f"\nreport: {path}", markup=False)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = ("accuracy", "tokens_per_forward", "speedup", "agreement")
    for title in ("sampler", *(_METRICS[name].title for name in names), "accuracy against baseline"):
        table.add_column(title, justify="left" if title == "sampler" else "right", no_wrap=True)
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
            shown = reports.with_interval(difference, metric)
            cells.append(shown if verdict != NO_DIFFERENCE else f"{shown} {NO_DIFFERENCE}")
        table.add_row(*cells)
    return table


def _wide(table: Table) -> None:
    """Print a table whole: a narrow terminal wraps its lines, nothing is cut."""
    width = Measurement.get(_out, _out.options.update(width=1000), table).maximum
    Console(highlight=False, width=max(width, 1)).print(table)


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
        TextColumn("{task.description}"),
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
                    description=progress.doing or "starting",
                )

            yield watch
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        _err.print(f"{stamp} {prefix}{record.getMessage()}", markup=False)


@contextmanager
def _terminated() -> Iterator[None]:
    """A SIGTERM, as schedulers send it, ends the run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _err.print("interrupted: the same command goes on from here")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
