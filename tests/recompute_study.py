"""Recompute every number of a report from the records alone, sharing no code with the package.

    python tests/recompute_study.py RESULTS_FOLDER

Prints what differs from results.csv and curves.csv; exit code 1 where anything does. Point values must
agree to rounding; intervals, which come from other and fewer random resamples, to a quarter of their
width.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq

RESAMPLES = 4000
SHARES = ("accuracy", "accuracy_difference", "agreement", "forced_share")


def distance(a, b):
    """Levenshtein distance over the longer length, by the textbook's table."""
    if not a and not b:
        return 0.0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1] / max(len(a), len(b))


def mcnemar(first, second):
    """Two-sided exact p-value: how likely a split of the discordant pairs at most as likely as this is."""
    b = sum(bool(x) and not y for x, y in zip(first, second, strict=True))
    c = sum(bool(y) and not x for x, y in zip(first, second, strict=True))
    n = b + c
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    return min(1.0, sum(p for p in chances if p <= chances[b] * (1 + 1e-9)))


def adjusted(p_values):
    """Benjamini and Hochberg's step-up values."""
    order = sorted(range(len(p_values)), key=lambda i: -p_values[i])
    found, least = [0.0] * len(p_values), 1.0
    for rank, i in enumerate(order):
        least = min(least, p_values[i] * len(p_values) / (len(p_values) - rank))
        found[i] = least
    return found


def aup(points, y_max):
    """AUP of (tokens per forward, accuracy in per cent) as arXiv:2601.07568 defines it."""
    points = sorted(points, key=lambda point: point[0])
    points = [point for point in points if point[1] >= points[0][1] - 5]

    def weighted(y):
        return y * min(math.exp(-3 * (1 - y / y_max)), 1)

    area = points[0][0] * points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        area += (x1 - x0) * (weighted(y0) + weighted(y1)) / 2
    return area


class Sampler:
    """The records of one sampler on one task with one model, by prompt, a list a seed."""

    def __init__(self, folder, cells):
        self.cell = cells[0]
        self.seeds = [pq.read_table(folder / "cells" / f"{c['id']}.parquet").to_pylist() for c in cells]
        self.prompts = len(self.seeds[0])

    def summed(self, name):
        return [sum(seed[i][name] for seed in self.seeds) for i in range(self.prompts)]

    def metrics(self, base, index):
        """Every metric on some prompts."""

        def total(values):
            return sum(values[i] for i in index)

        own = {name: self.summed(name) for name in ("correct", "tokens", "row_forwards", "seconds")}
        n = len(index) * len(self.seeds)
        found = {
            "accuracy": total(own["correct"]) / n,
            "tokens_per_forward": total(own["tokens"]) / total(own["row_forwards"]),
            "tokens_per_second": total(own["tokens"]) / total(own["seconds"]),
            "forwards": total(own["row_forwards"]) / n,
            "forced_share": total(self.summed("forced")) / total(self.summed("commits")),
        }
        if base is not None:
            found["accuracy_difference"] = found["accuracy"] - total(base.summed("correct")) / n
            found["speedup"] = total(base.summed("seconds")) / total(own["seconds"])
            found["agreement"] = total(self.same(base)) / n
            found["edit_distance"] = total(self.distances(base)) / n
        return found

    def pairs(self, base, i):
        return [(a[i]["text"], b[i]["text"]) for a, b in zip(self.seeds, base.seeds, strict=True)]

    def same(self, base):
        return [sum(x == y for x, y in self.pairs(base, i)) for i in range(self.prompts)]

    def distances(self, base):
        if not hasattr(self, "_distances"):
            self._distances = [
                sum(distance(x, y) for x, y in self.pairs(base, i)) for i in range(self.prompts)
            ]
        return self._distances


def recomputed(folder):
    """The rows that results.csv should hold, with what each interval should nearly be."""
    manifest = json.loads((folder / "manifest.json").read_text())
    groups = {}
    for cell in manifest["cells"]:
        groups.setdefault((cell["model"], cell["task"]), {}).setdefault(cell["sampler"], []).append(cell)
    rows, groups_of_samplers = {}, {}
    for (model, task), named in groups.items():
        complete = {
            name: cells
            for name, cells in named.items()
            if all((folder / "cells" / f"{c['id']}.parquet").exists() for c in cells)
        }
        samplers = {name: Sampler(folder, cells) for name, cells in complete.items()}
        base = samplers.get(manifest["study"]["baseline"])
        for name, sampler in samplers.items():
            other = base if sampler is not base else None
            everything = range(sampler.prompts)
            row = sampler.metrics(other, everything)
            generator = random.Random(1)
            resamples = [
                sampler.metrics(other, generator.choices(everything, k=sampler.prompts))
                for _ in range(RESAMPLES if sampler.prompts <= 12 else 300)
            ]
            row["intervals"] = {
                key: [
                    sorted(r[key] for r in resamples)[int(q * (len(resamples) - 1))] for q in (0.025, 0.975)
                ]
                for key in resamples[0]
            }
            if other is not None:
                first = [[record["correct"] for record in s.seeds[0]] for s in (sampler, base)]
                row["mcnemar_p"] = mcnemar(*first)
            for name_of_sum in (
                "tokens",
                "row_forwards",
                "refreshes",
                "positions_computed",
                "forced",
                "commits",
                "remasks",
                "seconds",
                "refresh_seconds",
            ):
                row[name_of_sum] = sum(sampler.summed(name_of_sum))
            row["peak_memory"] = max(r["peak_memory"] for seed in sampler.seeds for r in seed)
            rows[model, task, name] = row
        compared = [name for name in samplers if samplers[name] is not base] if base else []
        values = adjusted([rows[model, task, name]["mcnemar_p"] for name in compared])
        for name, p in zip(compared, values, strict=True):
            rows[model, task, name]["mcnemar_p_adjusted"] = p
        groups_of_samplers[model, task] = samplers
    return rows, groups_of_samplers


def differences(folder):
    """What results.csv and curves.csv say otherwise."""
    folder = Path(folder)
    rows, groups = recomputed(folder)
    with (folder / "results.csv").open() as file:
        given = {(r["model"], r["task"], r["sampler"]): r for r in csv.DictReader(file)}
    if set(given) != set(rows):
        yield f"rows: {set(given) ^ set(rows)}"
    for key, row in rows.items():
        for name, value in row.items():
            if name == "intervals":
                continue
            if not math.isclose(float(given[key][name]), value, rel_tol=1e-9, abs_tol=1e-12):
                yield f"{key} {name}: {given[key][name]}, recomputed {value}"
        for name, bounds in row["intervals"].items():
            for end, bound in zip(("low", "high"), bounds, strict=True):
                width = bounds[1] - bounds[0]
                # A share of few prompts moves in steps; two resamplings may end a step apart.
                step = 1.01 / groups[key[:2]][key[2]].prompts if name in SHARES else 0.0
                if abs(float(given[key][f"{name}_{end}"]) - bound) > 0.25 * width + step:
                    yield f"{key} {name}_{end}: {given[key][f'{name}_{end}']}, recomputed {bound}"
    with (folder / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    for curve in curves:
        samplers = groups[curve["model"], curve["task"]]
        y_max = float(curve["y_max"]) * 100
        best = max(rows[curve["model"], curve["task"], name]["accuracy"] for name in samplers) * 100
        if not math.isclose(y_max, best):
            yield f"y_max: {y_max}, recomputed {best}"
        names = curve["samplers"].split("; ")
        points = [
            (
                rows[curve["model"], curve["task"], n]["tokens_per_forward"],
                100 * rows[curve["model"], curve["task"], n]["accuracy"],
            )
            for n in names
        ]
        if not math.isclose(float(curve["aup"]), aup(points, y_max), rel_tol=1e-9):
            yield f"{curve['curve']} aup: {curve['aup']}, recomputed {aup(points, y_max)}"


if __name__ == "__main__":
    found = list(differences(sys.argv[1]))
    print("\n".join(found) or "every number agrees")
    sys.exit(bool(found))
