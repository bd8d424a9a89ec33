"""Numbers from records, each with a 95 % paired-bootstrap interval.

The unit that is resampled is the prompt, with all its seeds, so that two samplers are always compared
on the same prompts. Every interval comes from the same resamples (scipy.stats.bootstrap, percentile
method, a fixed seed), so it is the same whenever it is computed from the same records.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from scipy import stats

Array = NDArray[np.float64]

RESAMPLES = 9999
LEVEL = 0.95
_SEED = 0
# Resampled indices held at once.
_AT_ONCE = 2_000_000
NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; the bounds are NaN where there are fewer than two prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """What a number is called, how it is shown, and what it means. `per_cent`: a share, shown times 100."""

    name: str
    title: str
    meaning: str
    per_cent: bool = False
    digits: int = 2
    neutral: float | None = None  # the value that means "as the baseline"


METRICS = (
    Metric("accuracy", "right", "Share of right answers.", per_cent=True, digits=1),
    Metric(
        "accuracy_difference",
        "right - baseline",
        "Share of right answers minus the baseline's on the same prompts.",
        per_cent=True,
        digits=1,
        neutral=0.0,
    ),
    Metric(
        "tokens_per_forward",
        "tokens/forward",
        "Tokens up to and including the first end of sequence over row forwards, each summed first.",
    ),
    Metric("tokens_per_second", "tokens/s", "The same tokens over the seconds of decoding.", digits=1),
    Metric("forwards", "forwards", "Row forwards for a prompt, mean.", digits=1),
    Metric(
        "speedup", "speed-up", "The baseline's seconds over this sampler's, on the same prompts.", neutral=1.0
    ),
    Metric("agreement", "same text", "Share of texts equal to the baseline's.", per_cent=True, digits=1),
    Metric(
        "edit_distance",
        "edit distance",
        "Levenshtein distance to the baseline's text over the longer text's length, mean.",
        digits=3,
    ),
    Metric(
        "forced_share",
        "forced",
        "Share of commits that the engine made because the policy made none.",
        per_cent=True,
        digits=1,
    ),
)


@dataclass
class Row:
    """One sampler on one task with one model, over all seeds."""

    model: str
    task: str
    sampler: str
    is_baseline: bool
    run: Mapping[str, Any]
    source: int
    point: Mapping[str, Any]
    seeds: tuple[int, ...]
    columns: Columns
    estimates: dict[str, Estimate] = field(default_factory=dict)
    p_value: float = math.nan
    p_adjusted: float = math.nan
    published: Mapping[str, Any] | None = None

    def verdict(self, metric: Metric) -> str:
        """`no difference shown` where the interval holds the neutral value, else `better` or `worse`.

        For accuracy McNemar's exact test must agree: with few prompts the bootstrap's intervals are
        too narrow.
        """
        if metric.neutral is None or metric.name not in self.estimates:
            return ""
        found = self.estimates[metric.name]
        outside = found.low > metric.neutral or found.high < metric.neutral
        if not outside or (metric.name == "accuracy_difference" and self.p_value > 1 - LEVEL):
            return NO_DIFFERENCE
        return "better" if found.value > metric.neutral else "worse"


@dataclass
class Curve:
    """Rows that differ in one number alone, by rising value; `parameter` is None for a row on its own."""

    model: str
    task: str
    title: str
    parameter: str | None
    rows: list[Row]
    aup: Estimate


class Columns:
    """What the records of a row come to for each prompt, float64 `[prompts]`.

    Counts and seconds are summed over seeds, shares are means.
    """

    def __init__(self, tables: Sequence[pa.Table], baseline: Sequence[pa.Table] | None) -> None:
        self.prompts = tables[0].num_rows
        self.correct = _mean(tables, "correct")
        self.first_correct = _column(tables[0], "correct")
        self.tokens = _sum(tables, "tokens")
        self.row_forwards = _sum(tables, "row_forwards")
        self.refreshes = _sum(tables, "refreshes")
        self.positions_computed = _sum(tables, "positions_computed")
        self.forced = _sum(tables, "forced")
        self.commits = _sum(tables, "commits")
        self.remasks = _sum(tables, "remasks")
        self.seconds = _sum(tables, "seconds")
        self.refresh_seconds = _sum(tables, "refresh_seconds")
        self.peak_memory = max(float(_column(table, "peak_memory").max()) for table in tables)
        self.seeds = len(tables)
        self.per_forward = np.concatenate([_tokens_in_each_forward(table) for table in tables])
        self.same: Array | None = None
        self.distance: Array | None = None
        if baseline is not None:
            pairs = [
                [(x, y) for x, y in zip(a["text"].to_pylist(), b["text"].to_pylist(), strict=True)]
                for a, b in zip(tables, baseline, strict=True)
            ]
            self.same = np.mean([[float(x == y) for x, y in pair] for pair in pairs], axis=0)
            self.distance = np.mean(
                [[Levenshtein.normalized_distance(x, y) for x, y in pair] for pair in pairs], axis=0
            )


def estimate(columns: Columns, baseline: Columns | None) -> dict[str, Estimate]:
    """Every metric that can be computed; those against the baseline need it."""
    c, b = columns, baseline

    def ratio(above: Array, below: Array, index: NDArray[np.int64]) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = above[index].sum(-1) / below[index].sum(-1)
        return found

    def mean(values: Array, index: NDArray[np.int64]) -> Array:
        found: Array = values[index].mean(-1)
        return found

    ways = {
        "accuracy": partial(mean, c.correct),
        "tokens_per_forward": partial(ratio, c.tokens, c.row_forwards),
        "tokens_per_second": partial(ratio, c.tokens, c.seconds),
        "forwards": partial(mean, c.row_forwards / c.seeds),
        "forced_share": partial(ratio, c.forced, c.commits),
    }
    if b is not None:
        ways |= {
            "accuracy_difference": partial(mean, c.correct - b.correct),
            "speedup": partial(ratio, b.seconds, c.seconds),
        }
    if c.same is not None and c.distance is not None:
        ways |= {"agreement": partial(mean, c.same), "edit_distance": partial(mean, c.distance)}
    found = bootstrapped(c.prompts, lambda index: np.stack([way(index) for way in ways.values()]))
    return dict(zip(ways, found, strict=True))


def bootstrapped(prompts: int, statistic: Any) -> list[Estimate]:
    """Estimates of `statistic(index [..., prompts]) -> [values, ...]` under resampling of prompts."""
    values = statistic(np.arange(prompts))
    if prompts < 2:
        return [Estimate(float(value), math.nan, math.nan) for value in values]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a statistic that is the same in every resample
        result = stats.bootstrap(
            (np.arange(prompts),),
            lambda index, axis=-1: statistic(index),
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            batch=max(_AT_ONCE // prompts, 1),
            rng=np.random.default_rng(_SEED),
        )
    interval = result.confidence_interval
    return [
        Estimate(float(value), float(low), float(high))
        for value, low, high in zip(values, interval.low, interval.high, strict=True)
    ]


def mcnemar(first: Array, second: Array) -> float:
    """The exact two-sided p-value of McNemar's test: a binomial test on the pairs that differ."""
    only_first = int(((first > 0) & (second == 0)).sum())
    only_second = int(((second > 0) & (first == 0)).sum())
    differing = only_first + only_second
    return float(stats.binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjustment, for the many comparisons of one table."""
    return [float(p) for p in stats.false_discovery_control(p_values)] if p_values else []


def aup(rho: Array, y: Array, y_max: Array | float, *, alpha: float = 3.0, tolerance: float = 5.0) -> Array:
    """Accuracy under parallelism of points `[points, ...]`: d3LLM (arXiv:2601.07568).

    rho: tokens per forward. y, y_max: per cent. Points are sorted by rho; those more than `tolerance`
    below the first are left out. AUP = rho_1 y_1 + the trapezoids over y W(y) between neighbours, with
    W(y) = min(exp(-alpha (1 - y / y_max)), 1).
    """
    order = np.argsort(rho, axis=0, kind="stable")
    rho, y = np.take_along_axis(rho, order, 0), np.take_along_axis(y, order, 0)
    weighted = y * np.minimum(np.exp(-alpha * (1 - y / y_max)), 1.0)
    kept = y >= y[:1] - tolerance
    area: Array = rho[0] * y[0]
    last_rho, last = rho[0], weighted[0]
    for i in range(1, len(rho)):
        area = area + np.where(kept[i], 0.5 * (rho[i] - last_rho) * (weighted[i] + last), 0.0)
        last_rho = np.where(kept[i], rho[i], last_rho)
        last = np.where(kept[i], weighted[i], last)
    return area


def aup_of(rows: Sequence[Row], y_max: float) -> Estimate:
    """AUP of a curve; y_max, in per cent, is held fixed in the resamples."""
    if not y_max:
        return Estimate(0.0, 0.0, 0.0)
    correct, tokens, forwards = (
        np.stack([getattr(row.columns, name) for row in rows])
        for name in ("correct", "tokens", "row_forwards")
    )

    def statistic(index: NDArray[np.int64]) -> Array:
        rho = tokens[:, index].sum(-1) / forwards[:, index].sum(-1)
        return aup(rho, 100 * correct[:, index].mean(-1), y_max)[None]

    return bootstrapped(rows[0].columns.prompts, statistic)[0]


def _column(table: pa.Table, name: str) -> Array:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _sum(tables: Sequence[pa.Table], name: str) -> Array:
    found: Array = np.sum([_column(table, name) for table in tables], axis=0)
    return found


def _mean(tables: Sequence[pa.Table], name: str) -> Array:
    found: Array = np.mean([_column(table, name) for table in tables], axis=0)
    return found


def _tokens_in_each_forward(table: pa.Table) -> NDArray[np.int64]:
    """How many tokens each row forward committed that stand in the text."""
    counts = [
        np.unique(forwards, return_counts=True)[1] for forwards in table["forward_of_position"].to_pylist()
    ]
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
