"""Every benchmark runs on a small shape, and its last line is JSON. Times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = {
    "step_cost.py": ["--canvas", "64", "--block", "8", "--repeats", "2"],
    "generation.py": ["--prompt", "16", "--gen-length", "32", "--block-length", "8", "--repeats", "1"],
    "scaling.py": ["--canvas", "128", "--batch", "1", "--block", "8", "--repeats", "1"],
    "headline.py": [
        "--prompt",
        "16",
        "--gen-length",
        "64",
        "--block-length",
        "8",
        "--repeats",
        "1",
        "--k",
        "4",
    ],
    "against_published.py": [],
    "fast_paths.py": ["--prompt", "16", "--gen-length", "16", "--block-length", "8", "--repeats", "1"],
}


def test_every_benchmark_is_listed_and_tried():
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"common.py", "published_worker.py"}
    assert scripts == set(SMALL)
    readme = (BENCHMARKS / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in scripts)


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_ends_in_json(name):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), "--shape", "tiny", *SMALL[name]],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == name.removesuffix(".py")
    if name == "step_cost.py":
        assert all(found[step]["floor"] > 0 for step in ("refresh", "prefix", "dual"))
    if name == "generation.py":
        rows = found["samplers"]
        assert len(rows) == 12
        assert rows["fixed-k 4, dual"]["forwards"] == 8
        assert rows["fixed-k 4, dual"]["positions_computed"] == 4 * 48 + 4 * 8
        assert rows["fixed-k 1, none"]["positions_computed"] == 32 * 48
    if name == "headline.py":
        assert found["runs"]["dual, 4 a forward"]["refreshes"] == 8
        assert found["runs"]["dual, 4 a forward"]["forwards"] == 16
    if name == "against_published.py":
        assert found["measured"] is False
        assert "not measured" in done.stdout
