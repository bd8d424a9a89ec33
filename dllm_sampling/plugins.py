"""Which policies, model families and tasks are installed, and which plugins could not be loaded.

Plugins come from the entry-point group `dllm_sampling` and from one-file modules in a folder. Built-ins
use the same entry points as everybody. Three environment variables matter:

- `DLLM_SAMPLING_PLUGINS`: `all` (default), `none`, or plugin names separated by commas. Names select:
  only those are loaded, built-ins included. Names behind a minus sign are left out of all.
- `DLLM_SAMPLING_PLUGINS_DIR`: a folder of one-file plugins.
- `DLLM_SAMPLING_STRICT_PLUGINS=1`: a broken plugin is an error instead of a warning.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from pydantic import ValidationError

from dllm_sampling.errors import ConfigurationError, PluginError, PluginWarning, unknown_name
from dllm_sampling.hookspecs import HOOK_VERSION, PROJECT, DiscoverySpec, hook_names
from dllm_sampling.named import Named
from dllm_sampling.policies import KINDS
from dllm_sampling.tasks import Task

GROUP = PROJECT
SELECT = "DLLM_SAMPLING_PLUGINS"
FOLDER = "DLLM_SAMPLING_PLUGINS_DIR"
STRICT = "DLLM_SAMPLING_STRICT_PLUGINS"

# What each hook registers: the name under which the registry keeps it.
HOOK_KINDS = {
    "register_unmasking_policies": "unmasking",
    "register_cache_policies": "cache",
    "register_block_schedules": "schedule",
    "register_logits_transforms": "transforms",
    "register_wrappers": "wrappers",
    "register_observers": "observers",
    "register_backbones": "backbone",
    "register_tasks": "task",
}
_BASES: dict[str, type[Named]] = {**{base.kind: base for base in KINDS}, Task.kind: Task}
KIND_TITLES = {
    "unmasking": "unmasking policy",
    "cache": "cache policy",
    "schedule": "block schedule",
    "transforms": "logits transform",
    "wrappers": "wrapper",
    "observers": "observer",
    "backbone": "model family",
    "task": "task",
}

N = TypeVar("N", bound=Named)


@dataclass
class PluginInfo:
    """One plugin: where it comes from, what it offers, or why it is not there."""

    name: str
    source: str
    version: str | None = None
    status: str = "loaded"  # loaded, disabled or broken
    error: str | None = None
    provides: dict[str, list[str]] = field(default_factory=dict)


class _Discovery(pluggy.PluginManager):
    """Takes plain functions named after the hooks."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if name in HOOK_KINDS and callable(getattr(plugin, name)):
            return {
                "wrapper": False,
                "hookwrapper": False,
                "optionalhook": False,
                "tryfirst": False,
                "trylast": False,
                "specname": None,
            }
        return None


class Registry:
    """Everything that installed plugins offer, by kind and name."""

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self._classes: dict[str, dict[str, type[Any]]] = {kind: {} for kind in KIND_TITLES}
        self._owners: dict[tuple[str, str], PluginInfo] = {}
        self._manager = _Discovery(PROJECT)
        self._manager.add_hookspecs(DiscoverySpec)

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted."""
        return sorted(self._classes[kind])

    def classes(self, kind: str) -> dict[str, type[Any]]:
        """Name to class, of one kind."""
        return dict(sorted(self._classes[kind].items()))

    def get(self, kind: str, name: str) -> type[Any]:
        """The class of that name; a misspelt name is an error with the nearest match."""
        try:
            return self._classes[kind][name]
        except KeyError:
            message = unknown_name(KIND_TITLES[kind], name, self._classes[kind])
            broken = [p.name for p in self.plugins if p.status == "broken"]
            if broken:
                message += f" (Not loaded, because broken: {', '.join(broken)}.)"
            raise ConfigurationError(message) from None

    def owner(self, kind: str, name: str) -> PluginInfo:
        """The plugin that offers a name."""
        return self._owners[kind, name]

    def build(self, base: type[N], value: object) -> N:
        """A policy or task of a kind from an instance, a name, or a mapping with a name and parameters."""
        title = KIND_TITLES[base.kind]
        if isinstance(value, base):
            return value
        if isinstance(value, Named):
            raise ConfigurationError(f"{type(value).__name__} is a {KIND_TITLES[value.kind]}, not a {title}.")
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            raise ConfigurationError(
                f"a {title} is a name, a mapping with a name, or an instance, not {value!r}."
            )
        settings = dict(value)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ConfigurationError(f"a {title} needs a name: got {value!r}.")
        cls: type[N] = self.get(base.kind, name)
        unknown = [key for key in settings if key not in cls.model_fields]
        if unknown:
            raise ConfigurationError(
                f"{title} {name!r}: " + unknown_name("parameter", unknown[0], cls.model_fields)
            )
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigurationError(f"{title} {name!r}: {describe(error)}") from None

    def add(self, info: PluginInfo, module: object) -> None:
        """Register what a plugin offers, all or nothing."""
        _check(module)
        self._manager.register(module, name=info.name)
        try:
            offered: list[tuple[str, str, type[Any]]] = []
            for hook, kind in HOOK_KINDS.items():
                function = getattr(module, hook, None)
                if function is None:
                    continue
                classes = function()
                if not isinstance(classes, Iterable):
                    raise PluginError(f"{hook} returned {classes!r}, not a list of classes.")
                for cls in classes:
                    self._check_class(kind, hook, cls)
                    self._check_owner(info, kind, cls, offered)
                    offered.append((kind, cls.name, cls))
        except BaseException:
            self._manager.unregister(module)
            raise
        for kind, name, cls in offered:
            self._classes[kind][name] = cls
            self._owners[kind, name] = info
            info.provides.setdefault(kind, []).append(name)

    def _check_class(self, kind: str, hook: str, cls: object) -> None:
        base = _BASES.get(kind)
        if not inspect.isclass(cls):
            raise PluginError(f"{hook} returned {cls!r}, which is not a class.")
        if base is not None and not issubclass(cls, base):
            raise PluginError(f"{hook} returned {cls.__name__}, which is not a {base.__name__}.")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise PluginError(f"{cls.__name__} does not define {missing}.")
        if not isinstance(getattr(cls, "name", None), str):
            raise PluginError(f"{cls.__name__} has no name.")

    def _check_owner(
        self, info: PluginInfo, kind: str, cls: type[Any], offered: list[tuple[str, str, type[Any]]]
    ) -> None:
        name = cls.name
        if (kind, name) in self._owners:
            raise _TwoOwners(
                f"two plugins offer the {KIND_TITLES[kind]} {name!r}: {self._owners[kind, name].name} "
                f"({self._owners[kind, name].source}) and {info.name} ({info.source}). Disable one: "
                f"{SELECT}=-{info.name}"
            )
        if any((kind, name) == (k, n) for k, n, _ in offered):
            raise PluginError(f"{info.name} offers the {KIND_TITLES[kind]} {name!r} twice.")


class _TwoOwners(PluginError):
    """Never skipped: which of the two a config means cannot be known."""


def describe(error: ValidationError) -> str:
    """A pydantic error as one line: parameter, value, and what is allowed."""
    parts = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        message = str(cause) if cause is not None else problem["msg"]
        value = problem["input"]
        given = f" (got {value!r})" if cause is None and problem["type"] != "missing" else ""
        parts.append(f"{where}: {message}{given}" if where else f"{message}{given}")
    return "; ".join(parts)


def _check(module: object) -> None:
    version = getattr(module, "HOOK_VERSION", HOOK_VERSION)
    if version != HOOK_VERSION:
        raise PluginError(f"written for version {version!r} of the hooks; this is version {HOOK_VERSION}.")
    hooks = hook_names(DiscoverySpec)
    found = [name for name in dir(module) if name.startswith("register_")]
    for name in found:
        if name not in hooks and inspect.isfunction(getattr(module, name)):
            raise PluginError(unknown_name("hook", name, hooks))
    if not found:
        raise PluginError("registers nothing: define at least one of " + ", ".join(sorted(hooks)))


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
    if folder:
        root = Path(folder)
        if not root.is_dir():
            raise ConfigurationError(f"the plugins folder {folder!r} does not exist.")
        for path in sorted(root.glob("*.py")):
            if not path.name.startswith("_"):
                yield PluginInfo(path.stem, str(path)), functools.partial(_load_file, path)


def _load_file(path: Path) -> ModuleType:
    name = f"dllm_sampling_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load(select: str, folder: str | None, strict: bool) -> Registry:
    """Find and load plugins. A broken one is skipped with a warning, or raises where `strict`."""
    found = Registry()
    candidates = list(_candidates(folder))
    selected = _selected(select, {info.name for info, _ in candidates})
    for info, loader in candidates:
        found.plugins.append(info)
        if info.name not in selected:
            info.status = "disabled"
            continue
        try:
            found.add(info, loader())
        except _TwoOwners:
            raise
        except Exception as error:
            info.status = "broken"
            info.error = "".join(traceback.format_exception_only(error)).strip()
            if strict:
                raise PluginError(f"plugin {info.name} ({info.source}): {info.error}") from error
            warnings.warn(
                f"plugin {info.name} ({info.source}) is skipped: {info.error}", PluginWarning, stacklevel=3
            )
    return found


@functools.lru_cache(maxsize=8)
def _loaded(select: str, folder: str | None, strict: bool) -> Registry:
    return load(select, folder, strict)


def registry() -> Registry:
    """What is installed, under the current environment variables; loaded once for each setting."""
    return _loaded(
        os.environ.get(SELECT, "all"), os.environ.get(FOLDER) or None, os.environ.get(STRICT) == "1"
    )
