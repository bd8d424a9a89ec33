"""Small studies of the bundled model that several test modules share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import yaml

from dllm_sampling.cli import main
from dllm_sampling.study import Study
from dllm_sampling.study.records import TIMES

SMALL = {
    "name": "A small study",
    "tasks": ["word_problems"],
    "batch_size": 4,
    "baseline": "one at a time",
    "samplers": [
        {"name": "one at a time", "unmasking": {"name": "fixed_k", "k": 2}, "cache": "dual"},
        {
            "name": "threshold {threshold}",
            "cache": "dual",
            "unmasking": "confidence_threshold",
            "product": {"unmasking.threshold": [0.5, 0.9]},
        },
    ],
}


def small(limit=10, **changes):
    """A study of three samplers, three batches each."""
    return Study.of({**SMALL, **changes}, limit=limit)


def written(folder, **changes):
    """The same study as a file."""
    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def contents(results):
    """Every record of every cell without what depends on the clock, by the cell's id."""
    return {cell: table.drop_columns(list(TIMES)).to_pylist() for cell, table in results.tables.items()}


def command(*arguments, **more):
    """`dllm-sampling` as a process that has not ended; one thread, so that sums are added in one order."""
    return subprocess.Popen(
        [sys.executable, "-m", "dllm_sampling.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **more,
    )


def finished(*arguments, stream=None):
    """Exit code, stdout and stderr of `dllm-sampling`, in this process: starting one takes seconds.

    stream: where both go, instead.
    """
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, warnings.showwarning
    sys.argv = ["dllm-sampling", *map(str, arguments)]
    code = None
    try:
        with patch.dict(os.environ), redirect_stdout(stream or out), redirect_stderr(stream or err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv, warnings.showwarning = before
    return code, out.getvalue(), err.getvalue()
