"""Every class that installed plugins offer, by kind and name."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dllm_sampling.backbones import Backbone
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
from dllm_sampling.policies.kinds import KINDS
from dllm_sampling.policies.named import Named
from dllm_sampling.tasks import Task

SELECT = "DLLM_SAMPLING_PLUGINS"


LONGEST_NAME = 100


MOST_OFFERED = 1000


# The base of each kind: what a plugin offers is checked against the base of the kind that it names.
BASES: dict[str, type[Any]] = {
    **{base.kind: base for base in KINDS},
    Backbone.kind: Backbone,
    Task.kind: Task,
}


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
    switched_off: dict[str, list[str]] = field(default_factory=dict)  # of what it offers


@dataclass
class _Kept:
    """A class that a plugin offers."""

    cls: type[Any]
    owner: PluginInfo


class Registry:
    """Everything that installed plugins offer, by kind and name."""

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self._kept: dict[str, dict[str, _Kept]] = {kind: {} for kind in BASES}
        self._off: dict[str, dict[str, _Kept]] = {kind: {} for kind in BASES}

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted."""
        return sorted(self._kept[kind])

    def classes(self, kind: str) -> dict[str, type[Any]]:
        """Name to class, of one kind."""
        return {name: kept.cls for name, kept in sorted(self._kept[kind].items())}

    def switched_off(self, kind: str) -> dict[str, type[Any]]:
        """Name to class of what plugins offer of one kind and the user has switched off."""
        return {name: kept.cls for name, kept in sorted(self._off[kind].items())}

    def get(self, kind: str, name: str) -> type[Any]:
        """The class of that name; a misspelt name is an error with the nearest match."""
        if name in self._kept[kind]:
            return self._kept[kind][name].cls
        if name in self._off[kind]:
            raise ConfigurationError(
                f"the {KIND_TITLES[kind]} {name!r} of plugin {self._off[kind][name].owner.name} is switched "
                f"off: by {SELECT} or --disable."
            )
        message = unknown_name(KIND_TITLES[kind], name, self._kept[kind])
        others = [_a(KIND_TITLES[other]) for other, found in self._kept.items() if name in found]
        if others:
            message += f" ({name} is {' and '.join(others)}.)"
        broken = [p.name for p in self.plugins if p.status == "broken"]
        if broken:
            message += f" (Not loaded, because broken: {', '.join(broken)}.)"
        raise ConfigurationError(message)

    def owner(self, kind: str, name: str) -> PluginInfo:
        """The plugin that offers a name, switched off or not."""
        return (self._kept[kind].get(name) or self._off[kind][name]).owner

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
            info = self.owner(base.kind, name)
            raise PluginError(
                f"{title} {name!r} of plugin {info.name} ({info.source}) cannot be built: {told(error)}"
                + "".join(f"\n{line}" for line in last_lines(cls, error.__traceback__))
            ) from error

    def add(self, info: PluginInfo, classes: Iterable[object], off: Collection[str] = ()) -> None:
        """Take what a plugin offers, all or nothing.

        Each class says by its `kind` what it is, and must be a subclass of that kind's base.
        off: names, bare or as plugin:name, of what is left out; it is checked like the rest.
        """
        offered: dict[tuple[str, str], type[Any]] = {}
        for given in classes:
            kind, cls = _checked(given)
            if (kind, cls.name) in offered:
                raise PluginError(f"{info.name} offers the {KIND_TITLES[kind]} {cls.name!r} twice.")
            offered[kind, cls.name] = cls
            if len(offered) > MOST_OFFERED:
                raise PluginError(f"{info.name} offers more than {MOST_OFFERED} classes.")
        left_out = {key for key in offered if {key[1], f"{info.name}:{key[1]}"} & set(off)}
        for kind, name in offered.keys() - left_out:
            if name in self._kept[kind]:
                self._refuse_second(info, kind, name)
        for (kind, name), cls in offered.items():
            is_off = (kind, name) in left_out
            (self._off if is_off else self._kept)[kind].setdefault(name, _Kept(cls, info))
            (info.switched_off if is_off else info.provides).setdefault(kind, []).append(name)

    def _refuse_second(self, info: PluginInfo, kind: str, name: str) -> None:
        first = self.owner(kind, name)
        raise TwoOwnersError(
            f"two plugins offer the {KIND_TITLES[kind]} {name!r}: {first.name} ({first.source}) and "
            f"{info.name} ({info.source}). Switch one off: {SELECT}=-{info.name}:{name}, or the whole of "
            f"its plugin: {SELECT}=-{info.name}"
        )


def _checked(cls: object) -> tuple[str, type[Any]]:
    """What a plugin offers with its kind, or a PluginError that says what is wrong with it."""
    if not inspect.isclass(cls):
        raise PluginError(f"register() offers {shown(cls)}, which is not a class.")
    kind = getattr(cls, "kind", None)
    base = BASES.get(kind) if isinstance(kind, str) else None
    if kind is None or base is None:
        bases = ", ".join(base.__name__ for base in BASES.values())
        raise PluginError(
            f"register() offers {cls.__name__}, which is of no kind: it subclasses none of {bases}."
        )
    if not issubclass(cls, base):
        raise PluginError(f"{cls.__name__} says kind={kind!r}, but is no subclass of {base.__name__}.")
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
    return kind, cls


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
