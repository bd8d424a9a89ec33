"""What a results folder holds, as rows and curves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from dllm_sampling.errors import StudyError
from dllm_sampling.state.result import MOST_FORCED
from dllm_sampling.study import metrics
from dllm_sampling.study.folder import ResultsFolder
from dllm_sampling.study.metrics import Columns, Curve, Row


class Results:
    """The finished cells of a study: their records, and what they come to.

    Needs the folder alone: neither the models nor the plugins that made it.
    Raises StudyError where the folder holds no study.
    """

    def __init__(self, folder: ResultsFolder | str | Path) -> None:
        self.folder = folder if isinstance(folder, ResultsFolder) else ResultsFolder(folder)
        manifest = self.folder.manifest()
        if manifest is None:
            raise StudyError(f"{self.folder.path} holds no manifest.json: it is no results folder.")
        self.manifest: dict[str, Any] = manifest
        self.study: dict[str, Any] = manifest["study"]
        self._examples: dict[str, list[dict[str, str]]] = {}

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """The records of every finished cell, by its id."""
        found = {}
        for cell in self.manifest["cells"]:
            if cell["id"] not in found:
                table = self.folder.table(cell["id"], cell["checker_id"])
                if table is not None:
                    found[cell["id"]] = table
        return found

    def examples(self, examples_id: str) -> list[dict[str, str]]:
        """Prompt and answer of every example of a task, read once."""
        if examples_id not in self._examples:
            self._examples[examples_id] = self.folder.examples(examples_id)
        return self._examples[examples_id]

    @property
    def unfinished(self) -> list[dict[str, Any]]:
        """The cells that are not finished."""
        return [cell for cell in self.manifest["cells"] if cell["id"] not in self.tables]

    @property
    def failed(self) -> dict[str, str]:
        """Id to message of the cells that failed in the last run that tried them."""
        found: dict[str, str] = {}
        for run in self.manifest["runs"]:
            for part in (*run.get("merged", []), run):
                found |= part.get("failed", {})
        return {cell["id"]: found[cell["id"]] for cell in self.unfinished if cell["id"] in found}

    @cached_property
    def rows(self) -> list[Row]:
        """One row for each model, task and sampler with all seeds finished; baselines first."""
        rows: list[Row] = []
        for (model, task), cells in self._finished():
            group = self._rows_of(model, task, cells)
            others = [row for row in group if not row.is_baseline and "accuracy_difference" in row.estimates]
            for row, p in zip(others, metrics.adjusted([row.p_value for row in others]), strict=True):
                row.p_adjusted = p
            rows += sorted(group, key=lambda row: not row.is_baseline)
        return rows

    def _finished(self) -> Iterator[tuple[tuple[str, str], dict[str, list[dict[str, Any]]]]]:
        """For each model and task, the cells of each sampler of which all are finished."""
        cells = self.manifest["cells"]
        for model, task in dict.fromkeys((cell["model"], cell["task"]) for cell in cells):
            group: dict[str, list[dict[str, Any]]] = {}
            for cell in cells:
                if (cell["model"], cell["task"]) == (model, task):
                    group.setdefault(cell["sampler"], []).append(cell)
            finished = {
                sampler: found
                for sampler, found in group.items()
                if all(cell["id"] in self.tables for cell in found)
            }
            if finished:
                yield (model, task), finished

    def _rows_of(self, model: str, task: str, samplers: Mapping[str, list[dict[str, Any]]]) -> list[Row]:
        tables = {name: [self.tables[cell["id"]] for cell in cells] for name, cells in samplers.items()}
        name = self.study["baseline"]
        baseline = tables.get(name)
        base = Columns(baseline, None) if baseline is not None else None
        rows = []
        for sampler, cells in samplers.items():
            is_baseline = sampler == name
            columns = base if is_baseline and base else Columns(tables[sampler], baseline)
            row = Row(
                model=model,
                task=task,
                sampler=sampler,
                is_baseline=is_baseline,
                run=cells[0]["run"],
                source=cells[0]["source"],
                point=cells[0]["point"],
                seeds=tuple(cell["seed"] for cell in cells),
                columns=columns,
                published=self._published(model, task, sampler),
            )
            other = None if is_baseline else base
            row.estimates = metrics.estimate(columns, other)
            if other is not None:
                row.p_value = metrics.mcnemar(columns.first_correct, other.first_correct)
            rows.append(row)
        return rows

    def _published(self, model: str, task: str, sampler: str) -> dict[str, Any] | None:
        for figure in self.study["published"]:
            if (figure["task"], figure["sampler"]) == (task, sampler) and figure["model"] in (None, model):
                return dict(figure)
        return None

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing a number: samplers whose policy hardly chose anything."""
        return [
            f"{row.sampler} ({row.model}, {row.task}): {100 * share:.0f} % of its commits were forced: where "
            "its policy chooses nothing, the engine commits the most confident position, one a forward."
            for row in self.rows
            if (share := row.estimates["forced_share"].value) > MOST_FORCED
        ]

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Row]]:
        """The rows of each model and task."""
        return dict(_grouped(self.rows, lambda row: (row.model, row.task)))

    @cached_property
    def curves(self) -> list[Curve]:
        """Rows of one entry of the study that differ in one number alone, with their AUP."""
        found = []
        for (model, task), group in self.groups.items():
            y_max = self.y_max(model, task)
            for parameter, rows in _sweeps(group):
                found.append(
                    Curve(model, task, _title(rows), parameter, rows, metrics.aup_of(rows, 100 * y_max))
                )
        return found

    def y_max(self, model: str, task: str) -> float:
        """The accuracy that AUP weighs against: the task's best_accuracy, or the best in the study."""
        best = next(t["best_accuracy"] for t in self.study["tasks"] if t["name"] == task)
        return float(best or max(row.estimates["accuracy"].value for row in self.groups[model, task]))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One flat mapping a row: what `results.csv` holds."""
        return [_flat(row) for row in self.rows]


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "model": row.model,
        "task": row.task,
        "sampler": row.sampler,
        "baseline": row.is_baseline,
        "prompts": row.columns.prompts,
        "seeds": " ".join(map(str, row.seeds)),
    }
    for metric in metrics.METRICS:
        found = row.estimates.get(metric.name)
        values = (None, None, None) if found is None else dataclasses.astuple(found)
        flat |= dict(zip((metric.name, f"{metric.name}_low", f"{metric.name}_high"), values, strict=True))
        if metric.neutral is not None:
            flat[f"{metric.name}_verdict"] = row.verdict(metric)
    c = row.columns
    flat |= {
        "mcnemar_p": row.p_value,
        "mcnemar_p_adjusted": row.p_adjusted,
        "tokens": c.tokens.sum(),
        "row_forwards": c.row_forwards.sum(),
        "refreshes": c.refreshes.sum(),
        "positions_computed": c.positions_computed.sum(),
        "forced": c.forced.sum(),
        "commits": c.commits.sum(),
        "remasks": c.remasks.sum(),
        "seconds": c.seconds.sum(),
        "refresh_seconds": c.refresh_seconds.sum(),
        "peak_memory": c.peak_memory,
    }
    for name in ("accuracy", "tokens_per_forward", "tokens_per_second", "speedup", "source"):
        flat[f"published_{name}"] = (row.published or {}).get(name)
    flat |= {f"point.{path}": value if _is_number(value) else str(value) for path, value in row.point.items()}
    return flat


def _grouped(rows: list[Row], key: Any) -> Iterator[tuple[Any, list[Row]]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    yield from found.items()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sweeps(group: list[Row]) -> Iterator[tuple[str | None, list[Row]]]:
    """The curves in the rows of one model and task."""
    for _, rows in _grouped(group, lambda row: row.source):
        swept = [
            path
            for path in rows[0].point
            if len({str(row.point[path]) for row in rows}) > 1
            and all(_is_number(row.point[path]) for row in rows)
        ]
        if not swept:
            yield from ((None, [row]) for row in rows)
        for path in swept:

            def rest(row: Row, path: str = path) -> str:
                return str([(name, value) for name, value in row.point.items() if name != path])

            for _, curve in _grouped(rows, rest):
                yield path, sorted(curve, key=lambda row, path=path: row.point[path])  # type: ignore[misc]


def _title(rows: list[Row]) -> str:
    """The words that the names of a curve's samplers share, with * for what differs."""
    words = [row.sampler.split(" ") for row in rows]
    if len({len(split) for split in words}) > 1:
        return f"{rows[0].sampler} ... {rows[-1].sampler}"
    shared = []
    for column in zip(*words, strict=True):
        tails = {word[len(word.rstrip(",;:")) :] for word in column}
        shared.append(column[0] if len(set(column)) == 1 else "*" + (tails.pop() if len(tails) == 1 else ""))
    return " ".join(word for word, _ in itertools.groupby(shared))
