"""Which policies, model families and tasks are installed, and which plugins could not be loaded.

Plugins come from the entry-point group `dllm_sampling` and from one-file modules in a folder. Built-ins
use the same entry points as everybody. Three environment variables matter:

- `DLLM_SAMPLING_PLUGINS` selects plugins, and switches off single classes of theirs: see `selection`.
- `DLLM_SAMPLING_PLUGINS_DIR`: a folder of one-file plugins; files that start with an underscore are none,
  and the plugins beside them can import them. A run or study file may name a folder besides (`use_folder`).
- `DLLM_SAMPLING_STRICT_PLUGINS=1`: a broken plugin is an error instead of a warning.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dllm_sampling.errors import ConfigurationError, PluginError, PluginWarning, in_one_line, shown, told
from dllm_sampling.plugins import folder as plugin_files
from dllm_sampling.plugins.offers import offers_of
from dllm_sampling.plugins.registry import SELECT, PluginInfo, Registry, TwoOwnersError
from dllm_sampling.plugins.selection import Selection
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
        or set(",:") & set(name)
        or name.startswith("-")
    ):
        raise PluginError(
            f"{shown(name)} cannot be the name of a plugin, which is printable, without commas and colons, "
            "has no spaces at its ends, and does not start with a minus sign; rename it."
        )
    if name in {"all", "none"}:
        raise PluginError(
            f"{name!r} selects plugins in {SELECT}, so it cannot be the name of one; rename it."
        )


def _candidates(folders: Sequence[str]) -> Iterator[tuple[PluginInfo, Callable[[], object]]]:
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda p: (p.dist is None or p.dist.name != "dllm-sampling", p.name)):
        version = point.dist.version if point.dist else None
        source = f"{point.dist.name} {version}" if point.dist else point.value
        yield PluginInfo(point.name, source, version), point.load
    for folder in folders:
        for path in plugin_files.plugin_files(folder):
            yield PluginInfo(path.stem, str(path)), functools.partial(plugin_files.load_file, path)


def _refuse_the_same_file(folders: Sequence[str]) -> None:
    """Two folders are used at once, and which of two files of one name is meant cannot be known."""
    first: dict[str, Path] = {}
    for folder in folders:
        for path in plugin_files.plugin_files(folder):
            if path.stem in first:
                raise ConfigurationError(
                    f"both {str(first[path.stem])!r} and {str(path)!r} are plugins called {path.stem!r}: "
                    "rename one, or use one folder alone."
                )
            first[path.stem] = path


def load(select: str, folders: Sequence[str] = (), *, strict: bool) -> Registry:
    """Find and load plugins. A broken one is skipped with a warning, or raises where `strict`.

    select: as `DLLM_SAMPLING_PLUGINS` holds it. folders: of one-file plugins. Broken is whatever fails,
    exits or skips while it is loaded; KeyboardInterrupt alone is passed on.
    """
    _refuse_the_same_file(folders)
    found = Registry()
    candidates = list(_candidates(folders))
    selection = Selection.of(select, [info.name for info, _ in candidates])
    for folder in folders:
        plugin_files.forget(folder)
    names: set[str] = set()
    for info, loader in candidates:
        found.plugins.append(info)
        if info.name not in selection.plugins:
            info.status = "disabled"
            continue
        try:
            _check_name(info, names)
            names.add(info.name)
            with plugin_files.undisturbed():
                found.add(info, offers_of(loader()), selection.off)
        except (TwoOwnersError, KeyboardInterrupt):
            raise
        except BaseException as error:
            info.status = "broken"
            info.error = told(error)
            where = f"plugin {in_one_line(info.name, 100)} ({in_one_line(info.source)})"
            if strict:
                raise PluginError(f"{where}: {info.error}") from error
            warnings.warn(f"{where} is skipped: {info.error}", PluginWarning, stacklevel=3)
    selection.check(found)
    return found


@functools.lru_cache(maxsize=8)
def _loaded(select: str, folders: tuple[str, ...], strict: bool) -> Registry:
    return load(select, folders, strict=strict)


# The folder that a run or study file has named last, in this process.
_named: str | None = None


def named_folder() -> str | None:
    """The folder of plugins that a run or study file has named last in this process, or None."""
    return _named


def use_folder(folder: str) -> str:
    """Load the plugins of a folder besides those of the environment variables, and return its full path.

    They stay until another folder is named: a file's plugins take the place of the last file's, which may be
    called the same. Where the folder cannot be read, or its plugins stand in the way of others, an error says
    so and everything stays as it was.
    """
    global _named  # noqa: PLW0603 - what is installed is a fact of the process, as the environment is
    if not folder.strip() or "\0" in folder:
        raise ConfigurationError(f"{shown(folder)} names no folder; the one of the file itself is `.`.")
    before, _named = _named, os.path.abspath(os.path.expanduser(folder))
    try:
        registry()
    except BaseException:
        _named = before
        raise
    return _named


def registry() -> Registry:
    """What is installed, under the current environment variables; loaded once for each setting."""
    return _loaded(os.environ.get(SELECT, "all"), _folders(), os.environ.get(STRICT) == "1")


def _folders() -> tuple[str, ...]:
    """The folders in use; one that is named twice counts once, however it is written."""
    folders = [folder for folder in (os.environ.get(FOLDER), _named) if folder]
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        del folders[1:]
    return tuple(folders)
