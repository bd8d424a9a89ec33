"""Which policies, model families and tasks are installed, and which plugins could not be loaded.

Plugins come from the entry-point group `dllm_sampling` and from one-file modules in a folder. Built-ins
use the same entry points as everybody. Three environment variables matter:

- `DLLM_SAMPLING_PLUGINS`: `all` (default), `none`, or plugin names separated by commas. Names select:
  only those are loaded, built-ins included. Names behind a minus sign are left out of all.
- `DLLM_SAMPLING_PLUGINS_DIR`: a folder of one-file plugins; files that start with an underscore are none,
  and the plugins beside them can import them.
- `DLLM_SAMPLING_STRICT_PLUGINS=1`: a broken plugin is an error instead of a warning.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from typing import Any

from dllm_sampling.errors import (
    ConfigurationError,
    PluginError,
    PluginWarning,
    in_one_line,
    shown,
    told,
    unknown_name,
)
from dllm_sampling.plugins import folder as plugin_files
from dllm_sampling.plugins.registry import SELECT, PluginInfo, Registry, TwoOwnersError
from dllm_sampling.policies.run_spec import PROJECT

GROUP = PROJECT


FOLDER = "DLLM_SAMPLING_PLUGINS_DIR"


STRICT = "DLLM_SAMPLING_STRICT_PLUGINS"


def _check_name(info: PluginInfo, names: set[str]) -> None:
    """Refuse a plugin that its name could not select, or that another one has."""
    name = info.name
    if name in names:
        raise PluginError(f"another plugin is called {name!r} already; rename this one.")
    if (
        not name.strip()
        or name != name.strip()
        or not name.isprintable()
        or "," in name
        or name.startswith("-")
    ):
        raise PluginError(
            f"{shown(name)} cannot be the name of a plugin, which is printable, without commas and spaces "
            "at its ends, and does not start with a minus sign; rename it."
        )
    if name in {"all", "none"}:
        raise PluginError(
            f"{name!r} selects plugins in {SELECT}, so it cannot be the name of one; rename it."
        )


def _selected(names: str, known: set[str]) -> set[str]:
    parts = [part.strip() for part in names.split(",") if part.strip()]
    if parts == ["none"]:
        return set()
    off = {part[1:] for part in parts if part.startswith("-")}
    on = {part for part in parts if not part.startswith("-") and part != "all"}
    for name in sorted((on | off) - known):
        raise ConfigurationError(f"{SELECT}: " + unknown_name("plugin", name, known))
    return (on or known) - off


def _candidates(folder: str | None) -> Iterator[tuple[PluginInfo, Any]]:
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda p: (p.dist is None or p.dist.name != "dllm-sampling", p.name)):
        version = point.dist.version if point.dist else None
        source = f"{point.dist.name} {version}" if point.dist else point.value
        yield PluginInfo(point.name, source, version), point.load
    for path in plugin_files.plugin_files(folder) if folder else ():
        yield PluginInfo(path.stem, str(path)), functools.partial(plugin_files.load_file, path)


def load(select: str, folder: str | None, strict: bool) -> Registry:
    """Find and load plugins. A broken one is skipped with a warning, or raises where `strict`.

    Broken is whatever fails, exits or skips while it is loaded; KeyboardInterrupt alone is passed on.
    """
    found = Registry()
    candidates = list(_candidates(folder))
    selected = _selected(select, {info.name for info, _ in candidates})
    if folder:
        plugin_files.forget(folder)
    names: set[str] = set()
    for info, loader in candidates:
        found.plugins.append(info)
        if info.name not in selected:
            info.status = "disabled"
            continue
        try:
            _check_name(info, names)
            names.add(info.name)
            with plugin_files.undisturbed():
                found.add(info, loader())
        except (TwoOwnersError, KeyboardInterrupt):
            raise
        except BaseException as error:
            info.status = "broken"
            info.error = told(error)
            where = f"plugin {in_one_line(info.name, 100)} ({in_one_line(info.source)})"
            if strict:
                raise PluginError(f"{where}: {info.error}") from error
            warnings.warn(f"{where} is skipped: {info.error}", PluginWarning, stacklevel=3)
    return found


@functools.lru_cache(maxsize=8)
def _loaded(select: str, folder: str | None, strict: bool) -> Registry:
    return load(select, folder, strict)


def registry() -> Registry:
    """What is installed, under the current environment variables; loaded once for each setting."""
    return _loaded(
        os.environ.get(SELECT, "all"), os.environ.get(FOLDER) or None, os.environ.get(STRICT) == "1"
    )
