"""What a plugin raises, told with the plugin's name and its own last lines instead of a traceback of ours."""

from __future__ import annotations

import inspect
import linecache
import os
from types import TracebackType
from typing import Any

import torch

from dllm_sampling.errors import DllmSamplingError, PluginError, in_one_line, told
from dllm_sampling.policies.named import Named

# What says what to change by itself, or is not the plugin's doing.
PASSED_ON = (DllmSamplingError, torch.OutOfMemoryError, KeyboardInterrupt, GeneratorExit)
_LINES = 3


class Blame:
    """Turns what a plugin raises, `sys.exit` included, into a PluginError with its name and place.

    who: what failed, in words. code: a function, method or class of the plugin; the lines shown are those of
    its module and of the modules beside it in its package. kind: the error that is raised.
    """

    def __init__(self, who: str, code: Any, kind: type[DllmSamplingError] = PluginError) -> None:
        self._who = who
        self._code = code
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, PASSED_ON):
            return
        lines = "".join(f"\n{line}" for line in last_lines(self._code, trace))
        raise self._kind(f"{self._who} failed: {told(error)}{lines}") from error


def last_lines(code: Any, trace: TracebackType | None) -> list[str]:
    """The last of the plugins' own lines on the way to an error; the one that failed comes last.

    code: as for `Blame`. Lines of policies that a policy calls are among them, those of libraries are not.
    """
    function = inspect.unwrap(getattr(code, "__func__", code))
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    modules = {getattr(function, "__module__", None)}
    found = []
    while trace is not None:
        frame, number, trace = trace.tb_frame, trace.tb_lineno, trace.tb_next
        name, place = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        if isinstance(frame.f_locals.get("self"), Named):
            modules.add(name)
        packages = {module.rpartition(".")[0] for module in modules if module and "." in module}
        if place == file or name in modules or name.rpartition(".")[0] in packages:
            line = in_one_line(linecache.getline(place, number, frame.f_globals).strip(), 100)
            found.append(f"{_short(place)}, line {number}, in {frame.f_code.co_name}: {line}".rstrip(": "))
    return found[-_LINES:]


def _short(path: str) -> str:
    """A path as seen from the working folder, where it lies in it."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
