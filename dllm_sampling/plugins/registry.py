"""Every class that installed plugins offer, by kind and name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pluggy
from pydantic import BaseModel, ValidationError

from dllm_sampling.errors import (
    ConfigurationError,
    DllmSamplingError,
    PluginError,
    in_one_line,
    shown,
    told,
    unknown_name,
)
from dllm_sampling.plugins.blame import last_lines
from dllm_sampling.plugins.discovery_spec import DiscoverySpec
from dllm_sampling.policies.kinds import KINDS
from dllm_sampling.policies.named import Named
from dllm_sampling.policies.run_spec import HOOK_VERSION, PROJECT, hook_names
from dllm_sampling.tasks import Task

SELECT = "DLLM_SAMPLING_PLUGINS"


LONGEST_NAME = 100


MOST_OFFERED = 1000


# What each hook registers: the name under which the registry keeps it.
HOOK_KINDS = {
    "register_unmasking_policies": "unmasking",
    "register_scores": "score",
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
    "score": "score",
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
            others = [_a(KIND_TITLES[other]) for other, found in self._classes.items() if name in found]
            if others:
                message += f" ({name} is {' and '.join(others)}.)"
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
            raise ConfigurationError(
                f"{type(value).__name__} is {_a(KIND_TITLES[value.kind])}, not {_a(title)}."
            )
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            raise ConfigurationError(
                f"{_a(title)} is a name, a mapping with a name, or an instance, not {shown(value)}."
            )
        settings = dict(value)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            raise ConfigurationError(f"{_a(title)} needs a name: got {shown(value)}.")
        cls: type[N] = self.get(base.kind, name)
        unknown = [key for key in settings if key not in cls.model_fields]
        if unknown:
            raise ConfigurationError(
                f"{title} {name!r}: " + unknown_name("parameter", unknown[0], cls.model_fields)
            )
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigurationError(f"{title} {name!r}: {describe(error, cls)}") from None
        except (DllmSamplingError, KeyboardInterrupt):
            raise
        except BaseException as error:
            info = self._owners[base.kind, name]
            raise PluginError(
                f"{title} {name!r} of plugin {info.name} ({info.source}) cannot be built: {told(error)}"
                + "".join(f"\n{line}" for line in last_lines(cls, error.__traceback__))
            ) from error

    def add(self, info: PluginInfo, module: object) -> None:
        """Register what a plugin offers, all or nothing."""
        _check(module)
        offered: list[tuple[str, str, type[Any]]] = []
        try:
            self._manager.register(module, name=info.name)
            for hook, kind in HOOK_KINDS.items():
                function = getattr(module, hook, None)
                if function is None:
                    continue
                classes = function()
                if not isinstance(classes, Iterable):
                    raise PluginError(f"{hook} returned {shown(classes)}, not a list of classes.")
                for cls in classes:
                    self._check_class(kind, hook, cls)
                    self._check_owner(info, kind, cls, offered)
                    offered.append((kind, cls.name, cls))
                    if len(offered) > MOST_OFFERED:
                        raise PluginError(f"{hook} offers more than {MOST_OFFERED} classes.")
        except BaseException:
            if self._manager.has_plugin(info.name):
                self._manager.unregister(name=info.name)
            raise
        for kind, name, cls in offered:
            self._classes[kind][name] = cls
            self._owners[kind, name] = info
            info.provides.setdefault(kind, []).append(name)

    def _check_class(self, kind: str, hook: str, cls: object) -> None:
        base = _BASES.get(kind)
        if not inspect.isclass(cls):
            raise PluginError(f"{hook} returned {shown(cls)}, which is not a class.")
        if base is not None and not issubclass(cls, base):
            raise PluginError(f"{hook} returned {cls.__name__}, which is not a {base.__name__}.")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise PluginError(f"{cls.__name__} does not define {missing}.")
        name = getattr(cls, "name", None)
        if name is None:
            raise PluginError(f"{cls.__name__} has no name: `name: ClassVar[str] = ...`")
        if type(name) is not str:
            raise PluginError(f"the name of {cls.__name__} is {_a(type(name).__name__)}, not text.")
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise PluginError(
                f"the name of {cls.__name__} is {shown(name)}; a name is printable text of at most "
                f"{LONGEST_NAME} characters, without spaces at its ends."
            )

    def _check_owner(
        self, info: PluginInfo, kind: str, cls: type[Any], offered: list[tuple[str, str, type[Any]]]
    ) -> None:
        name = cls.name
        if (kind, name) in self._owners:
            raise TwoOwnersError(
                f"two plugins offer the {KIND_TITLES[kind]} {name!r}: {self._owners[kind, name].name} "
                f"({self._owners[kind, name].source}) and {info.name} ({info.source}). Disable one: "
                f"{SELECT}=-{info.name}"
            )
        if any((kind, name) == (k, n) for k, n, _ in offered):
            raise PluginError(f"{info.name} offers the {KIND_TITLES[kind]} {name!r} twice.")


class TwoOwnersError(PluginError):
    """Never skipped: which of the two a config means cannot be known."""


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """A pydantic error as one line: parameter, value, and what is allowed.

    A missing parameter of `model` is told with its description.
    """
    parts: dict[tuple[Any, ...], list[str]] = {}
    for problem in error.errors(include_url=False)[:20]:
        loc, message, given = problem["loc"], problem["msg"], f" (got {shown(problem['input'])})"
        if problem["type"] == "missing":
            given = ""
            if model is not None and len(loc) == 1 and loc[0] in model.model_fields:
                about = model.model_fields[str(loc[0])].description
                message = f"{message}: {about}" if about else message
        cause = problem.get("ctx", {}).get("error")
        if cause is not None:
            given, message = "", str(cause)
        parts.setdefault((loc, given), []).append(message)
    told_parts = [_part(loc, messages, given) for (loc, given), messages in _without_branches(parts).items()]
    more = f"; and {len(told_parts) - 5} more" if len(told_parts) > 5 else ""
    return "; ".join(told_parts[:5]) + more


def _without_branches(parts: dict[tuple[Any, ...], list[str]]) -> dict[tuple[Any, ...], list[str]]:
    """What several types of one field say of one value, put together under the field."""
    found: dict[tuple[Any, ...], list[str]] = {}
    beside = [(loc[:-1], given) for loc, given in parts if loc and given]
    for (loc, given), messages in parts.items():
        key = (loc[:-1], given) if loc and beside.count((loc[:-1], given)) > 1 else (loc, given)
        found.setdefault(key, []).extend(messages)
    return found


def _part(loc: tuple[Any, ...], messages: list[str], given: str) -> str:
    where = ".".join(in_one_line(str(part), 100) for part in loc)
    first, *more = dict.fromkeys(messages)
    message = " or ".join([first, *(text.removeprefix("Input should be ") for text in more)])
    return f"{where}: {message}{given}" if where else f"{message}{given}"


def _a(title: str) -> str:
    """The title with its article."""
    return f"{'an' if title[0] in 'aeiou' else 'a'} {title}"


def _check(module: object) -> None:
    version = getattr(module, "HOOK_VERSION", HOOK_VERSION)
    if version != HOOK_VERSION:
        raise PluginError(
            f"written for version {shown(version)} of the hooks; this is version {HOOK_VERSION}."
        )
    hooks = hook_names(DiscoverySpec)
    found = [name for name in dir(module) if name.startswith("register_")]
    for name in found:
        function = getattr(module, name)
        if name not in hooks and inspect.isfunction(function) and _defined_in(module, function):
            raise PluginError(unknown_name("hook", name, hooks))
    if not any(name in hooks for name in found):
        raise PluginError("registers nothing: define at least one of " + ", ".join(sorted(hooks)))


def _defined_in(module: object, function: object) -> bool:
    """Whether a function is the module's own and not imported by it."""
    name = getattr(module, "__name__", None)
    return name is None or getattr(function, "__module__", name) == name
