"""Paths in a study file are relative to its folder, wherever they stand and however they are written."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.plugins.nested import Nested
from dllm_sampling.policies.named import Named
from dllm_sampling.tasks import Task

# Fields of text in which a task that ships names a file; fields typed `Path` need no entry.
_FILES = {"path", "include_path"}


def path_from(text: str | Path, folder: Path | None) -> str:
    """A file as it is found from anywhere: `~` is the home folder, the rest is relative to `folder`."""
    path = Path(text).expanduser() if str(text).startswith("~") else Path(text)
    return str(path if folder is None else folder / path)


def checkpoint(text: str, folder: Path | None) -> str:
    """A checkpoint: a path where it is written as one or leads to a folder from here; else a hub id."""
    written = text.startswith(("~", ".", "/"))
    if folder is not None and (written or (text and _is_folder(folder / text))):
        return path_from(text, folder)
    return str(Path(text).expanduser()) if text.startswith("~") else text


def of_sampler(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """A sampler's settings with the paths in its policies, held ones included, found from `folder`."""
    return _fields(SamplerSettings, settings, folder) if folder is not None else dict(settings)


def anchored(kind: type[Named], value: Any, folder: Path | None) -> Any:
    """A policy or task as plain data, its paths found from `folder`; anything else as it is."""
    if folder is None or not isinstance(value, Mapping):
        return value
    cls = registry().classes(kind.kind).get(str(value.get("name")))
    return value if cls is None else _fields(cls, value, folder)


def _fields(cls: type[Any], settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = dict(settings)
    for name, field in cls.model_fields.items():
        if name not in found:
            continue
        if Path in _types(field.annotation) or (issubclass(cls, Task) and name in _FILES):
            found[name] = _mapped(found[name], partial(path_from, folder=folder), (str, Path))
            continue
        for mark in [*field.metadata, *_types(field.annotation)]:
            if isinstance(mark, Nested):
                change = partial(anchored, mark.kind, folder=folder)
                found[name] = _mapped(found[name], change, Mapping)
    return found


def _mapped(value: Any, change: Any, what: Any) -> Any:
    """`change` on a value of a type, or on each of a list."""
    if isinstance(value, what):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change, what) for item in value]
    return value


def _types(annotation: Any) -> list[Any]:
    """Every part of an annotation, marks of `Annotated` included."""
    inner = typing.get_args(annotation)
    return [annotation, *(part for argument in inner for part in _types(argument))]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
