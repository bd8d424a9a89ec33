"""Hashes of code and files: what a cell's id and a checker's id are made of."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from dllm_sampling.policies.named import Named

_ROOT = Path(__file__).resolve().parent.parent
# What lies beside the engine and decides no text: it shows, checks, tests or calls. Shipped policies are
# named by the runs that use them, like anybody's.
_NO_ENGINE = {
    "bundled", "caches", "cli", "integrations", "strategies", "study", "tasks", "testing", "trace",
}  # fmt: skip
_SHIPPED = (
    "dllm_sampling.bundled", "dllm_sampling.caches", "dllm_sampling.integrations", "dllm_sampling.strategies",
    "dllm_sampling.tasks",
)  # fmt: skip
_BASES = {"builtins", "abc", "pydantic", "typing"}  # what every class builds on
_LIBRARIES = [
    Path(path).resolve()
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
]


def digest(value: Any) -> str:
    """SHA-256 of plain data, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def engine_code() -> str:
    """A hash of the decoding engine's own source, wherever it lies in the package."""
    return digest([[name, text] for name, text in engine_files(_ROOT)])


def engine_files(root: Path) -> Iterator[tuple[str, str]]:
    """Path below the package's folder and text of every file of the engine."""
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in _NO_ENGINE:
            yield place.as_posix(), _text(path)


def code_of(objects: Iterable[Named]) -> dict[str, str]:
    """Class name to a hash of the source that makes it: its module, its bases', and what these import.

    Followed are imports of modules of the same package, of files beside the module, and of what is
    neither in the standard library nor installed as a third party's package. A version alone would not
    do: a researcher edits a policy many times before its version changes.
    """
    return {f"{type(item).__module__}.{type(item).__qualname__}": _code(type(item)) for item in objects}


@functools.cache
def _code(cls: type) -> str:
    found: dict[Path, str] = {}
    typed = []
    for base in cls.__mro__:
        module = sys.modules.get(base.__module__)
        top = base.__module__.partition(".")[0]
        if module is None or _is_engine(base.__module__) or top in _BASES:
            continue
        path = _file(module)
        if path is not None:
            _follow(path, module, found)
        else:  # typed at a prompt or in a notebook
            with suppress(OSError, TypeError):
                typed.append(inspect.getsource(base))
            typed.append(base.__qualname__)
    # By the files' names alone: a plugin that moves stays what it is.
    return digest([sorted([path.name, text] for path, text in found.items()), typed])


def _follow(path: Path, module: ModuleType | None, found: dict[Path, str]) -> None:
    """Add a module's text, and those of the modules it imports that belong to it."""
    path = path.resolve()
    if path in found:
        return
    found[path] = text = _text(path)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    root, home = _root(path)
    package = module.__package__ if module is not None else None
    if package is None:
        package = ".".join(path.parent.relative_to(root).parts)
    for wanted, attributes in _imports(tree, package):
        for other in _modules(wanted, attributes, module):
            file = _file(other)
            if file is not None and _belongs(other.__name__, file, home):
                _follow(file, other, found)
        for file in _files(root, wanted, attributes):
            if file.is_relative_to(home) and (file.is_relative_to(_ROOT) == path.is_relative_to(_ROOT)):
                _follow(file, None, found)


def _root(path: Path) -> tuple[Path, Path]:
    """The folder from which a file's imports count, and what of it belongs to it.

    All of it, or its package where other people's packages lie there too.
    """
    root = next(folder for folder in path.parents if not (folder / "__init__.py").exists())
    inside = path.relative_to(root).parts
    if path.is_relative_to(_ROOT):
        return root, _ROOT / path.relative_to(_ROOT).parts[0]
    return root, root / inside[0] if _is_installed(path) else root


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, list[str]]]:
    """Every module that is imported, and the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            yield ".".join([*above, node.module or ""]).strip("."), [alias.name for alias in node.names]


def _modules(wanted: str, attributes: list[str], importer: ModuleType | None) -> Iterator[ModuleType]:
    """The loaded modules that an import reaches: of a name taken from a package, the one that defines it."""
    here = sys.modules.get(wanted)
    if here is not None and not attributes:
        yield here
    for attribute in attributes:
        value = getattr(here if here is not None else importer, attribute, None)
        inner = sys.modules.get(f"{wanted}.{attribute}")
        home = sys.modules.get(str(getattr(value, "__module__", None)))
        reached = inner or (value if isinstance(value, ModuleType) else None) or home or here
        if reached is not None:
            yield reached


def _files(root: Path, wanted: str, attributes: list[str]) -> Iterator[Path]:
    """The files below `root` that an import reaches, loaded or not."""
    place = root.joinpath(*wanted.split("."))
    candidates = [place.with_name(f"{place.name}.py")] if wanted else []
    if wanted not in sys.modules:
        candidates.append(place / "__init__.py")
    for attribute in attributes:
        candidates += [place / f"{attribute}.py", place / attribute / "__init__.py"]
    yield from (path for path in candidates if path.is_file())


def _belongs(name: str, path: Path, home: Path) -> bool:
    if _is_engine(name):
        return False
    if name.startswith(_SHIPPED) or not _is_installed(path):
        return True
    # An environment may lie below a plugin's own folder: what is installed there is not the plugin's.
    return _is_installed(home) and path.resolve().is_relative_to(home)


def _is_engine(name: str) -> bool:
    """Whether `engine_code` covers a module."""
    return name.partition(".")[0] == "dllm_sampling" and not name.startswith(_SHIPPED)


def _is_installed(path: Path) -> bool:
    path = path.resolve()
    return "site-packages" in path.parts or any(path.is_relative_to(library) for library in _LIBRARIES)


def _file(module: ModuleType) -> Path | None:
    path = getattr(module, "__file__", None)
    return Path(path) if path and path.endswith(".py") and Path(path).is_file() else None


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "backslashreplace")


def with_contents(typed: Any, plain: Any) -> Any:
    """Settings as plain data where every path stands as a hash of what it leads to.

    typed: the settings with paths as `Path`; plain: the same ones as JSON has them.
    """
    if isinstance(typed, Path):
        return {"content": path_hash(typed)}
    if isinstance(typed, dict) and isinstance(plain, dict) and list(typed) == list(plain):
        return {key: with_contents(typed[key], plain[key]) for key in plain}
    if isinstance(typed, (list, tuple)) and isinstance(plain, list) and len(typed) == len(plain):
        return [with_contents(a, b) for a, b in zip(typed, plain, strict=True)]
    return plain


def path_hash(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names; of nothing where it is not there."""
    path = path.expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest([[p.relative_to(path).as_posix(), file_hash(p)] for p in files])
    return file_hash(path) if path.is_file() else digest(None)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()
