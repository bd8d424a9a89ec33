"""The report's plots, as matplotlib figures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dllm_sampling.study.metrics import Curve, Row
from dllm_sampling.study.results import Results
from dllm_sampling.study.text import shortened

_THIN: dict[str, Any] = {"linewidth": 0.8, "elinewidth": 0.7, "markersize": 5}
_MARKERS = "osD^vP*X<>ph"
# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")


# Text stands as it is, whatever it holds and whatever the user's own matplotlibrc says.
_LITERAL: dict[str, Any] = {
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
}
_WIDEST = 60  # characters of a name that a plot has room for; the tables hold it whole


@contextmanager
def _literal(**more: Any) -> Iterator[None]:
    settings: Any = {**_LITERAL, **more}
    with rc_context(settings), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box, and a plot too narrow for its names as it can be.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message=".*onstrained.*layout")
        yield


def _name(text: str) -> str:
    return shortened(text, _WIDEST)


def figures(results: Results) -> Iterator[tuple[str, str, Figure]]:
    """File name, caption and figure, for each model and task."""
    for i, ((model, task), rows) in enumerate(results.groups.items()):
        curves = [curve for curve in results.curves if (curve.model, curve.task) == (model, task)]
        where = f"{model}, {task}"
        yield (
            f"{i}-pareto",
            f"{where}: accuracy against tokens per forward, 95 % intervals, and the Pareto front",
            _drawn(_pareto, rows, curves),
        )
        for n, parameter in enumerate(dict.fromkeys(c.parameter for c in curves if c.parameter)):
            swept = [curve for curve in curves if curve.parameter == parameter]
            yield (
                f"{i}-sweep-{n}",
                f"{where}: accuracy and tokens per forward along {parameter}",
                _drawn(_sweep, swept, parameter),
            )
        yield (
            f"{i}-time",
            f"{where}: seconds in refreshes and in other steps, for a prompt",
            _drawn(_time, rows),
        )
        yield (
            f"{i}-distribution",
            f"{where}: share of forwards that committed so many tokens",
            _drawn(_distribution, rows),
        )


def _drawn(draw: Callable[..., Figure], *arguments: Any) -> Figure:
    with _literal():  # text asks how to be read when it is made, and again when it is drawn
        return draw(*arguments)


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes every time."""
    out = io.StringIO()
    with _literal(**{"svg.hashsalt": "dllm-sampling", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    with _literal():
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


def _legend(axis: Axes, entries: Sequence[tuple[Any, str]]) -> None:
    """Artists and their names. matplotlib leaves out a name that begins with _, so names are set later."""
    if len(entries) > 1:
        legend = axis.legend(
            [artist for artist, _ in entries], [str(i) for i in range(len(entries))],
            fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0),
        )  # fmt: skip
        for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
            text.set_text(_name(name))


def _pareto(rows: Sequence[Row], curves: Sequence[Curve]) -> Figure:
    figure, (axis,) = _axes(9, 5)
    entries = []
    for curve, style in zip(curves, _styles(curves), strict=True):
        x, x_reach = _bars(curve.rows, "tokens_per_forward")
        y, y_reach = _bars(curve.rows, "accuracy", 100)
        line = "-" if curve.parameter else "none"
        drawn = axis.errorbar(x, y, y_reach, x_reach, linestyle=line, **_THIN, **style)
        entries.append((drawn, curve.title))
    front = pareto_front(
        [(r.estimates["tokens_per_forward"].value, 100 * r.estimates["accuracy"].value) for r in rows]
    )
    (best,) = axis.step(
        *zip(*front, strict=True), where="pre", color="#888888", linewidth=4, alpha=0.35, zorder=0
    )
    axis.set_xlabel("tokens per forward")
    axis.set_ylabel("right answers, %")
    _legend(axis, [*entries, (best, "Pareto front")])
    return figure


def _sweep(curves: Sequence[Curve], parameter: str) -> Figure:
    figure, axes = _axes(11, 4, columns=2)
    entries = []
    for place, curve in enumerate(curves):
        style: dict[str, Any] = {
            "color": _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
        }
        values = [row.point[parameter] for row in curve.rows]
        for axis, name, scale in zip(axes, ("accuracy", "tokens_per_forward"), (100, 1), strict=True):
            y, reach = _bars(curve.rows, name, scale)
            drawn = axis.errorbar(values, y, reach, **_THIN, **style)
        entries.append((drawn, curve.title))
    for axis, title in zip(axes, ("right answers, %", "tokens per forward"), strict=True):
        axis.set_xlabel(_name(parameter))
        axis.set_ylabel(title)
    _legend(axes[-1], entries)
    return figure


def _time(rows: Sequence[Row]) -> Figure:
    figure, (axis,) = _axes(9, 0.9 + 0.24 * len(rows))
    places, names = range(len(rows)), [_name(row.sampler) for row in rows][::-1]
    per_prompt = [row.columns.prompts * row.columns.seeds for row in rows][::-1]
    refresh = np.array([row.columns.refresh_seconds.sum() for row in rows][::-1]) / per_prompt
    total = np.array([row.columns.seconds.sum() for row in rows][::-1]) / per_prompt
    axis.barh(places, refresh, color=_COLOURS[0], label="refreshes")
    axis.barh(places, total - refresh, left=refresh, color=_COLOURS[4], label="other steps")
    axis.set_xlabel("seconds for a prompt")
    axis.set_yticks(places, names, fontsize=8)
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
    axis.set_yticks(range(len(rows)), [_name(row.sampler) for row in rows], fontsize=8)
    axis.set_xlabel("tokens of the text committed in one forward of a row")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="share of forwards")
    return figure
