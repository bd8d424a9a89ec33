"""From a results folder of docs/examples/catalogue.yaml: docs/examples/catalogue.md and catalogue.json.

python docs/gen_catalogue_study.py RESULTS
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"
INTRODUCTION = """# An example: the whole catalogue on the bundled word problems

    OMP_NUM_THREADS=1 dllm-sampling compare docs/examples/catalogue.yaml --limit 160

160 held-out problems, batches of 32, one thread of an AMD EPYC; intervals hold 95 % of the resamples of
prompts. The baseline is the plain confidence threshold at its default. The machine ran tests beside it, so
speed-ups are rough: tokens per forward are what rules differ in, and positions computed what caches save.
Caches, schedules, transforms and wrappers stand here with that threshold, unmasking policies without a cache.
The answers are short (40 tokens, blocks of 32) and the model is tiny: what is best here need not be so
elsewhere.

"""


def main() -> None:
    """Write both files."""
    results = Path(sys.argv[1])
    with (results / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    policies = {row["sampler"]: row["sampler"].partition(",")[0] for row in rows}
    samplers = {}
    for row in rows:
        entry: dict[str, object] = {"policy": policies[row["sampler"]]}
        entry |= {name: float(row[name]) for name in ("accuracy", "tokens_per_forward")}
        entry["accuracy_interval"] = [float(row["accuracy_low"]), float(row["accuracy_high"])]
        if row["speedup"]:
            entry["speedup"] = float(row["speedup"])
            entry["speedup_interval"] = [float(row["speedup_low"]), float(row["speedup_high"])]
        samplers[row["sampler"]] = entry
    (EXAMPLES / "catalogue.json").write_text(
        json.dumps({"samplers": samplers}, indent=1) + "\n", encoding="utf-8"
    )
    report = (results / "report.md").read_text(encoding="utf-8")
    worse = [r["sampler"] for r in rows if r["accuracy_difference_verdict"] == "worse"]
    said = f"Worse than the plain threshold in accuracy, by interval and test: {', '.join(worse)}.\n\n"
    table = re.search(r"^\| sampler .*?(?=\n\n|\Z)", report, re.MULTILINE | re.DOTALL)
    if table is None:
        sys.exit(f"{results}: report.md holds no table of samplers")
    (EXAMPLES / "catalogue.md").write_text(INTRODUCTION + said + table[0] + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
