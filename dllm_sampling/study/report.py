"""Writes a report: one HTML file that opens anywhere, Markdown, CSV, and the plots."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml

from dllm_sampling.errors import visible
from dllm_sampling.study import metrics, plots
from dllm_sampling.study import text as text_of
from dllm_sampling.study.metrics import METRICS, Estimate, Metric, Row
from dllm_sampling.study.records import write_atomically
from dllm_sampling.study.results import Results

# Answers shown below a row of the HTML table.
_ANSWERS = 5
_SHOWN = tuple(metric for metric in METRICS if metric.name != "accuracy_difference")
_DIFFERENCE = next(metric for metric in METRICS if metric.name == "accuracy_difference")


@dataclass(frozen=True)
class TableCell:
    """One cell of the table: what is shown, what it is sorted by, and the interval."""

    text: str
    key: float | str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the table with what unfolds below it."""

    row: Row
    cells: list[TableCell]
    config: str
    answers: list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """One model on one task."""

    model: str
    task: str
    headings: list[str]
    meanings: list[str]
    lines: list[Line]
    curves: list[dict[str, str]]
    y_max: str
    prompts: int


def write(results: Results, folder: Path | None = None) -> Path:
    """Write report.html, .md and .tex, results.csv, curves.csv and plots/; return the HTML's path.

    folder: by default the results folder itself. Names, prompts and answers are text in all of them.
    """
    folder = folder or results.folder.path
    drawn = []
    for name, caption, figure in plots.figures(results):
        picture = plots.svg(figure)
        write_atomically(folder / "plots" / f"{name}.svg", _encoded(picture))
        write_atomically(folder / "plots" / f"{name}.png", plots.png(figure))
        drawn.append({"name": name, "caption": caption, "svg": picture})
    sections = [_section(results, model, task) for model, task in results.groups]
    values = {
        "study": results.study,
        "manifest_yaml": yaml.safe_dump(
            {key: value for key, value in results.manifest.items() if key not in ("cells", "study")},
            sort_keys=False,
            allow_unicode=True,
        ),
        "sections": sections,
        "plots": drawn,
        "metrics": METRICS,
        "warnings": results.warnings,
        "unfinished": results.unfinished,
        "failed": results.failed,
        "version": importlib.metadata.version("dllm-sampling"),
        "resamples": metrics.RESAMPLES,
        "no_difference": metrics.NO_DIFFERENCE,
    }
    write_atomically(folder / "results.csv", _csv(results.to_dicts()))
    write_atomically(folder / "curves.csv", _csv(_curves(results)))
    for name in ("report.md", "report.tex", "report.html"):
        write_atomically(folder / name, _encoded(_template(f"{name}.j2").render(values)))
    return folder / "report.html"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FunctionLoader(
        lambda name: (files("dllm_sampling.study") / "templates" / name).read_text(encoding="utf-8")
    )
    latex = name.endswith(".tex.j2")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(_TEX_MARKS if latex else {}),
    )
    line = text_of.latex if latex else text_of.markdown
    environment.filters["line"] = lambda text: line(str(text))
    environment.filters["paragraph"] = lambda text: "\n".join(line(t.strip()) for t in str(text).splitlines())
    return environment.get_template(name)


# Braces belong to TeX.
_TEX_MARKS: dict[str, Any] = {
    "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#", "comment_end_string": "#>",
}  # fmt: skip


def _finalized(value: Any) -> Any:
    """What a template shows: control characters as escapes, but for what is markup already."""
    return visible(value) if type(value) is str else value


def _section(results: Results, model: str, task: str) -> Section:
    rows = results.groups[model, task]
    published = [metric for metric in METRICS if any((row.published or {}).get(metric.name) for row in rows)]
    headings = ["sampler", *(metric.title for metric in _SHOWN), "accuracy against baseline", "McNemar p"]
    meanings = [
        "Click a line for its configuration and some answers.",
        *(metric.meaning for metric in _SHOWN),
        _DIFFERENCE.meaning,
        "Exact; adjusted for the comparisons in this table (Benjamini and Hochberg) in brackets.",
    ]
    headings += [f"published {metric.title}" for metric in published]
    meanings += ["As its publication reports it."] * len(published)
    y_max = results.y_max(model, task)
    return Section(
        model=model,
        task=task,
        headings=headings,
        meanings=meanings,
        lines=[Line(row, _cells(row, published), _config(row), _answers(results, row)) for row in rows],
        curves=[
            {
                "title": curve.title,
                "parameter": curve.parameter or "",
                "points": str(len(curve.rows)),
                "aup": f"{curve.aup.value:.1f}",
                "interval": _interval(curve.aup, Metric("", "", "", digits=1)),
            }
            for curve in results.curves
            if (curve.model, curve.task) == (model, task)
        ],
        y_max=f"{100 * y_max:.1f}",
        prompts=rows[0].columns.prompts,
    )


def _cells(row: Row, published: Sequence[Metric]) -> list[TableCell]:
    cells = [TableCell(row.sampler, row.sampler)]
    for metric in _SHOWN:
        note = metrics.NO_DIFFERENCE if row.verdict(metric) == metrics.NO_DIFFERENCE else ""
        cells.append(_cell(row.estimates.get(metric.name), metric, note))
    cells.append(_cell(row.estimates.get(_DIFFERENCE.name), _DIFFERENCE, row.verdict(_DIFFERENCE)))
    if math.isnan(row.p_value):
        cells.append(TableCell("", math.inf))
    else:
        cells.append(TableCell(f"{row.p_value:.2g}", row.p_value, f"[{row.p_adjusted:.2g}]"))
    figures = row.published or {}
    for metric in published:
        value = figures.get(metric.name)
        cells.append(
            TableCell("", -math.inf)
            if value is None
            else TableCell(shown(value, metric), value, note=str(figures["source"]))
        )
    return cells


def _cell(estimate: Estimate | None, metric: Metric, note: str) -> TableCell:
    if estimate is None:
        return TableCell("", -math.inf)
    return TableCell(shown(estimate.value, metric), estimate.value, _interval(estimate, metric), note)


def shown(value: float, metric: Metric) -> str:
    """A value as the table shows it."""
    sign = "+" if metric.name == "accuracy_difference" else ""
    if metric.per_cent:
        return f"{100 * value:{sign}.{metric.digits}f}%"
    return f"{value:.{metric.digits}f}" + ("x" if metric.name == "speedup" else "")


def with_interval(estimate: Estimate, metric: Metric) -> str:
    """A value and its interval, as tables show them."""
    return f"{shown(estimate.value, metric)} {_interval(estimate, metric)}".rstrip()


def _interval(estimate: Estimate, metric: Metric) -> str:
    if math.isnan(estimate.low):
        return ""
    scale = 100 if metric.per_cent else 1
    return f"[{scale * estimate.low:.{metric.digits}f}, {scale * estimate.high:.{metric.digits}f}]"


def _config(row: Row) -> str:
    return yaml.safe_dump(dict(row.run), sort_keys=False, allow_unicode=True)


def _answers(results: Results, row: Row) -> list[dict[str, Any]]:
    """Some answers beside the baseline's: first where one is right and the other is not."""
    cells = [c for c in results.manifest["cells"] if (c["model"], c["task"]) == (row.model, row.task)]
    own = next(c for c in cells if c["sampler"] == row.sampler and c["seed"] == row.seeds[0])
    records = results.tables[own["id"]].select(["prompt", "text", "correct"]).to_pylist()
    base = next(
        (c for c in cells if c["sampler"] == results.study["baseline"] and c["seed"] == row.seeds[0]), None
    )
    table = results.tables.get(base["id"]) if base is not None else None
    others: Sequence[Mapping[str, Any] | None] = (
        table.select(["text", "correct"]).to_pylist() if table is not None else [None] * len(records)
    )
    examples = results.examples(own["examples_id"])
    pairs = list(zip(records, others, strict=True))

    def interest(pair: tuple[Mapping[str, Any], Mapping[str, Any] | None]) -> tuple[bool, bool]:
        record, other = pair
        return (
            other is None or record["correct"] == other["correct"],
            other is None or record["text"] == other["text"],
        )

    return [
        {
            "prompt": examples[record["prompt"]]["prompt"],
            "answer": examples[record["prompt"]]["answer"],
            "text": record["text"],
            "correct": record["correct"],
            "baseline": other,
        }
        for record, other in sorted(pairs, key=interest)[:_ANSWERS]
    ]


def _curves(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "model": curve.model,
            "task": curve.task,
            "curve": curve.title,
            "parameter": curve.parameter,
            "points": len(curve.rows),
            "samplers": "; ".join(row.sampler for row in curve.rows),
            "y_max": results.y_max(curve.model, curve.task),
            "aup": curve.aup.value,
            "aup_low": curve.aup.low,
            "aup_high": curve.aup.high,
        }
        for curve in results.curves
    ]


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # All text in quotes: a carriage return in a name would begin a line of its own.
    writer = csv.DictWriter(out, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows({key: _plain(key, value) for key, value in row.items()} for row in rows)
    return _encoded(out.getvalue())


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, str) and key != "seeds":  # which are numbers, the first of them maybe below 0
        return text_of.csv_cell(value)
    return float(value) if isinstance(value, float) else value
