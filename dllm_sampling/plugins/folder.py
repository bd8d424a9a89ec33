"""Modules of a folder of one-file plugins, and the peace of the program while plugins are loaded.

The files of a folder are modules of one package of their own, so that no file stands in the way of another
module, whatever it is called. A plugin imports the helpers beside it, the modules and packages whose names
start with an underscore: `from _helper import x`, `import _helper` or `from . import _helper`. This holds for
the files of that folder alone: two folders may have a `_helper.py` each, and `sys.path` is not changed.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dllm_sampling.errors import ConfigurationError, PluginError

PLUGIN = "dllm_sampling_plugin"
PACKAGE = "dllm_sampling_plugin_folder"
MOST_BYTES = 10_000_000

# The package of each folder. Names do not tell where it lies: a plugin that moves stays what it is.
_packages: dict[str, str] = {}


def plugin_files(folder: str) -> list[Path]:
    """The plugins of a folder, sorted: its .py files but for helpers and hidden ones."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".py"))
    except FileNotFoundError:
        raise ConfigurationError(f"the plugins folder {folder!r} does not exist.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the plugins folder {folder!r} cannot be read: {reason}.") from None
    return [Path(folder, name) for name in names if not name.startswith(("_", "."))]


def load_file(path: Path) -> ModuleType:
    """The module of a plugin's file. Raises whatever the file raises when it is executed."""
    try:
        found = path.stat()
    except OSError as error:
        raise PluginError(f"cannot be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise PluginError("is a folder, not a file." if path.is_dir() else "is no regular file.")
    if found.st_size > MOST_BYTES:
        raise PluginError(f"has {found.st_size} bytes; a plugin has at most {MOST_BYTES}.")
    package, stem = _package_of(path.parent), path.stem.replace(".", "_dot_")
    spec = _Spec(f"{PLUGIN}_{stem}", path, package)
    module = importlib.util.module_from_spec(spec)
    # The second name is for plugins beside it: `from .this import that`.
    names = (spec.name, f"{package}.{stem}")
    sys.modules.update(dict.fromkeys(names, module))
    try:
        spec.source.exec_module(module)
    except BaseException:
        for name in names:
            sys.modules.pop(name, None)
        raise
    return module


def forget(folder: str) -> None:
    """Let the modules of a folder be executed anew when they are next loaded."""
    package = _packages.get(os.path.realpath(folder))
    if package is not None:
        for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
            del sys.modules[name]
            # What was imported stays an attribute of its package.
            vars(sys.modules[package]).pop(name.rpartition(".")[2], None)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """While plugins are loaded what they print goes to stderr, and nothing can be asked of the user.

    The working directory and the filters of warnings stay as they were; folders that they put on `sys.path`
    move to its end, where they hide no other module.
    """
    before, where = list(sys.path), None
    with contextlib.suppress(OSError):  # it may have been removed
        where = os.getcwd()
    asked, told = sys.stdin, sys.stderr
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        sys.stdin = io.StringIO()
        try:
            yield
        finally:
            sys.stdin, sys.stderr = asked, told
            if where is not None:
                os.chdir(where)
            if sys.path != before:
                sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]


class _Source(importlib.machinery.SourceFileLoader):
    """Leaves no bytecode in the user's folder, and gives a module the imports of its folder."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        package = str(module.__package__).partition(".")[0]
        own = dict(vars(builtins))
        own["__import__"] = _Imports(package)
        vars(module)["__builtins__"] = own
        super().exec_module(module)


class _Spec(importlib.machinery.ModuleSpec):
    """A plugin is known by its own name, and imports as a module of its folder."""

    def __init__(self, name: str, path: Path, package: str) -> None:
        self.source = _Source(name, str(path))
        super().__init__(name, self.source, origin=str(path))
        self.has_location = True
        self._package = package

    @property
    def parent(self) -> str:
        return self._package


class _Imports:
    """`__import__` for the modules of one folder: the helpers beside them come first."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __call__(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level == 0 and top.startswith("_") and _find(f"{self.package}.{top}") is not None:
            module = importlib.import_module(f"{self.package}.{name}")
            if not fromlist:
                return sys.modules[f"{self.package}.{top}"]
            return builtins.__import__(module.__name__, globals, locals, fromlist, 0)
        return builtins.__import__(name, globals, locals, fromlist or (), level)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what lies beside a plugin, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = fullname.partition(".")[0] in _packages.values()
        return _find(fullname, path) if ours else None


def _find(fullname: str, path: Sequence[str] | None = None) -> importlib.machinery.ModuleSpec | None:
    package = sys.modules[fullname.partition(".")[0]]
    for folder in package.__path__ if path is None else path:
        found = importlib.machinery.FileFinder(folder, (_Source, [".py"])).find_spec(fullname)
        if found is not None and found.loader is not None:
            return found
    return None


def _package_of(folder: Path) -> str:
    where = os.path.realpath(folder)
    if where not in _packages:
        name = f"{PACKAGE}_{len(_packages) + 1}" if _packages else PACKAGE
        package = ModuleType(name, f"The plugins of {where}.")
        package.__path__ = [where]
        package.__package__ = name
        sys.modules[name] = package
        _packages[where] = name
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    return _packages[where]
