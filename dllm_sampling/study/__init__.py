"""Comparative studies: from one file to a result with error bars."""

from __future__ import annotations

import importlib.util

from dllm_sampling.errors import StudyError

_NEEDS = ("filelock", "jinja2", "matplotlib", "pyarrow", "rapidfuzz", "scipy")
_missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
if _missing:
    raise StudyError(
        f"studies need {', '.join(_missing)}, not installed here: pip install 'dllm-sampling[study]'"
    )

from dllm_sampling.study.config import StudyConfig  # noqa: E402 - after what it needs is known to be there
from dllm_sampling.study.executors import Executor, LocalExecutor, RayExecutor  # noqa: E402 - as above
from dllm_sampling.study.results import Results  # noqa: E402 - as above
from dllm_sampling.study.study import Progress, Study  # noqa: E402 - as above

__all__ = ["Executor", "LocalExecutor", "Progress", "RayExecutor", "Results", "Study", "StudyConfig"]
