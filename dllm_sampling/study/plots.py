"""The report's plots, as matplotlib figures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dllm_sampling.study.metrics import Curve, Row
from dllm_sampling.study.results import Results

_THIN: dict[str, Any] = {"linewidth": 0.8, "elinewidth": 0.7, "markersize": 5}
_MARKERS = "osD^vP*X<>ph"
# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")


def figures(results: Results) -> Iterator[tuple[str, str, Figure]]:
    """File name, caption and figure, for each model and task."""
    for i, ((model, task), rows) in enumerate(results.groups.items()):
        curves = [curve for curve in results.curves if (curve.model, curve.task) == (model, task)]
        where = f"{model}, {task}"
        yield (
            f"{i}-pareto",
            f"{where}: accuracy against tokens per forward, 95 % intervals, and the Pareto front",
            _pareto(rows, curves),
        )
        for n, parameter in enumerate(dict.fromkeys(c.parameter for c in curves if c.parameter)):
            swept = [curve for curve in curves if curve.parameter == parameter]
            yield (
                f"{i}-sweep-{n}",
                f"{where}: accuracy and tokens per forward along {parameter}",
                _sweep(swept, parameter),
            )
        yield f"{i}-time", f"{where}: seconds in refreshes and in other steps, for a prompt", _time(rows)
        yield (
            f"{i}-distribution",
            f"{where}: share of forwards that committed so many tokens",
            _distribution(rows),
        )


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes every time."""
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "dllm-sampling", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both, by rising first number."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (-p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _styles(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A colour for each entry of the study, a marker for each of its curves."""
    curves_of: dict[int, int] = {}
    found = []
    for curve in curves:
        source = curve.rows[0].source
        place = curves_of[source] = curves_of.get(source, -1) + 1
        found.append(
            {
                "color": _COLOURS[source % len(_COLOURS)],
                "marker": _MARKERS[place % len(_MARKERS)],
                "alpha": 0.8,
            }
        )
    return found


def _bars(rows: Sequence[Row], name: str, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Values, and how far the interval reaches below and above them."""
    found = [row.estimates[name] for row in rows]
    values = np.array([e.value for e in found]) * scale
    reach = np.array([[e.value - e.low for e in found], [e.high - e.value for e in found]]) * scale
    return values, np.clip(np.nan_to_num(reach), 0, None)


def _legend(axis: Axes, entries: int) -> None:
    if entries > 1:
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _pareto(rows: Sequence[Row], curves: Sequence[Curve]) -> Figure:
    figure, (axis,) = _axes(9, 5)
    for curve, style in zip(curves, _styles(curves), strict=True):
        x, x_reach = _bars(curve.rows, "tokens_per_forward")
        y, y_reach = _bars(curve.rows, "accuracy", 100)
        line = "-" if curve.parameter else "none"
        axis.errorbar(x, y, y_reach, x_reach, linestyle=line, label=curve.title, **_THIN, **style)
    front = pareto_front(
        [(r.estimates["tokens_per_forward"].value, 100 * r.estimates["accuracy"].value) for r in rows]
    )
    axis.step(*zip(*front, strict=True), where="pre", color="#888888", linewidth=4, alpha=0.35, zorder=0,
              label="Pareto front")  # fmt: skip
    axis.set_xlabel("tokens per forward")
    axis.set_ylabel("right answers, %")
    _legend(axis, len(curves) + 1)
    return figure


def _sweep(curves: Sequence[Curve], parameter: str) -> Figure:
    figure, axes = _axes(11, 4, columns=2)
    for place, curve in enumerate(curves):
        style: dict[str, Any] = {
            "color": _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
        }
        values = [row.point[parameter] for row in curve.rows]
        for axis, name, scale in zip(axes, ("accuracy", "tokens_per_forward"), (100, 1), strict=True):
            y, reach = _bars(curve.rows, name, scale)
            axis.errorbar(values, y, reach, label=curve.title, **_THIN, **style)
    for axis, title in zip(axes, ("right answers, %", "tokens per forward"), strict=True):
        axis.set_xlabel(parameter)
        axis.set_ylabel(title)
    _legend(axes[-1], len(curves))
    return figure


def _time(rows: Sequence[Row]) -> Figure:
    figure, (axis,) = _axes(9, 0.9 + 0.24 * len(rows))
    names = [row.sampler for row in rows][::-1]
    per_prompt = [row.columns.prompts * row.columns.seeds for row in rows][::-1]
    refresh = np.array([row.columns.refresh_seconds.sum() for row in rows][::-1]) / per_prompt
    total = np.array([row.columns.seconds.sum() for row in rows][::-1]) / per_prompt
    axis.barh(names, refresh, color=_COLOURS[0], label="refreshes")
    axis.barh(names, total - refresh, left=refresh, color=_COLOURS[4], label="other steps")
    axis.set_xlabel("seconds for a prompt")
    axis.tick_params(axis="y", labelsize=8)
    axis.margins(y=0.01)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _distribution(rows: Sequence[Row]) -> Figure:
    figure, (axis,) = _axes(9, 0.9 + 0.24 * len(rows))
    most = int(max(row.columns.per_forward.max(initial=1) for row in rows))
    shares = np.stack(
        [
            np.bincount(row.columns.per_forward, minlength=most + 1)[1:]
            / max(len(row.columns.per_forward), 1)
            for row in rows
        ]
    )
    image = axis.imshow(
        np.ma.masked_equal(shares, 0),
        aspect="auto",
        cmap="viridis_r",
        vmin=0,
        vmax=1,
        extent=(0.5, most + 0.5, len(rows) - 0.5, -0.5),
    )
    axis.set_yticks(range(len(rows)), [row.sampler for row in rows], fontsize=8)
    axis.set_xlabel("tokens of the text committed in one forward of a row")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="share of forwards")
    return figure
