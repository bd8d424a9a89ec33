"""What is refused when a policy's class is made: mistakes that a run would pass over in silence.

A method that no hook calls does nothing, and an attribute that keeps something makes one run depend on the
one before. Both are told where the class stands, before anything is decoded.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, MutableMapping, MutableSequence, MutableSet, Sequence, Set
from typing import Any

from pydantic import BaseModel

from dllm_sampling.errors import PluginError

WRAP = "wrap_"
# A slip in a word of fewer letters often makes another word: begin, begun.
_SHORT = 6
# A slip in a name of so many letters hardly ever does.
_LONG = 9
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod)
_CHANGEABLE = (
    list, dict, set, bytearray, collections.deque, collections.defaultdict, collections.OrderedDict,
    collections.Counter, MutableMapping, MutableSequence, MutableSet,
)  # fmt: skip


def check_methods(
    cls: type[BaseModel], bases: Sequence[type[BaseModel]], hooks: Set[str], answered: Set[str]
) -> None:
    """Refuse what looks like a hook of a policy and is none.

    bases: the classes of its kind; what they define may be overridden. hooks: all hooks of a run. answered:
    those that this kind answers, and the other methods that it is asked.

    Raises PluginError for a public method whose name is nearly one of these, and for anything but a plain
    method under such a name.
    """
    asked = hooks | answered
    for field in cls.model_fields:
        if field in answered:
            raise PluginError(f"{cls.__name__}.{field}: {field} is a hook, so no field can have its name.")
    for name, value in _own(cls, bases):
        who = f"{cls.__name__}.{name}"
        wraps = name.startswith(WRAP) and name.removeprefix(WRAP) in hooks
        if name in asked or wraps:
            _check_form(who, value, wraps)
        elif isinstance(value, _FUNCTIONS) and not any(hasattr(base, name) for base in bases):
            near = meant(name, [*sorted(answered), *sorted(WRAP + hook for hook in hooks)])
            if near is not None:
                raise PluginError(
                    f"{who}: there is no hook {name!r}, so nothing would call it. Did you mean {near!r}? A "
                    "helper needs a name less like it, or an underscore in front."
                )


def check_keeps_nothing(cls: type[BaseModel]) -> None:
    """Raise PluginError for private attributes and for fields that can be changed in place."""
    for name in cls.__private_attributes__:
        raise PluginError(
            f"{cls.__name__}.{name}: a policy keeps nothing itself, or one run would depend on the one "
            "before. What a run remembers belongs into state.memory(self) or state.shared(self), which are "
            "empty at its start; a constant is a ClassVar, or stands outside the class."
        )
    for name, field in cls.model_fields.items():
        for kind in _types(field.annotation):
            if kind in _CHANGEABLE:
                raise PluginError(
                    f"{cls.__name__}.{name}: a {kind.__name__} could be changed by one run and read by the "
                    "next. Use tuple[...], frozenset[...] or Mapping[...], which take the same values; "
                    "what a run remembers belongs into state.memory(self)."
                )


def meant(name: str, hooks: Iterable[str]) -> str | None:
    """The hook that a method's name was most likely meant to be, or None for a name of its own.

    A slip is one letter more, fewer or other, two swapped, letters doubled or not, capitals, underscores,
    `on_` in front, or an ending left out. What goes on behind a hook's name (`begin_at`, `ends`) is another
    word.
    """
    for hook in hooks:
        given, wanted = name, hook
        if name.startswith(WRAP) and hook.startswith(WRAP):
            given, wanted = name.removeprefix(WRAP), hook.removeprefix(WRAP)
        elif hook.startswith(WRAP) and len(hook.removeprefix(WRAP)) < _SHORT:
            continue  # wrapped, wrap_end
        if any(_nearly(form(given), form(wanted)) for form in (_plain, _undoubled)):
            return hook
    return None


def _nearly(given: str, hook: str) -> bool:
    if given == hook:
        return True
    letters = len(hook)
    if given.startswith(hook) or (letters < _LONG and given[:1] != hook[:1]):
        return False
    if letters >= _LONG and hook.startswith(given):
        return len(hook) - len(given) <= 2
    same = _shared(given, hook)
    given, hook = given[same:][::-1], hook[same:][::-1]
    same = _shared(given, hook)
    given, wanted = given[same:], hook[same:]
    if len(given) == len(wanted) == 1:
        return letters >= _SHORT
    return len(given + wanted) == 1 or (len(given) == 2 and given == wanted[::-1])


def _shared(one: str, other: str) -> int:
    """How many letters two words begin with together."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _plain(name: str) -> str:
    """A name without capitals, underscores and `on_` in front."""
    return name.lower().removeprefix("on_").replace("_", "")


def _undoubled(name: str) -> str:
    """The same without doubled letters."""
    return re.sub(r"(.)\1+", r"\1", _plain(name))


def _check_form(who: str, value: object, wraps: bool) -> None:
    if isinstance(value, (staticmethod, classmethod)):
        raise PluginError(f"{who} is a {type(value).__name__}; a hook is a plain method, which gets `self`.")
    if not isinstance(value, types.FunctionType):
        raise PluginError(f"{who} is a {type(value).__name__}, which no hook calls; write it as a method.")
    if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
        raise PluginError(f"{who} is async, and nothing would await it; a hook is a plain method.")
    if wraps and not inspect.isgeneratorfunction(value):
        raise PluginError(f"{who} must be a generator with one yield, which gives it what it wraps.")
    if not wraps and inspect.isgeneratorfunction(value):
        raise PluginError(
            f"{who} has a yield, so calling it would do nothing; only wrap_ methods are generators."
        )


def _own(cls: type[BaseModel], bases: Sequence[type[BaseModel]]) -> Iterator[tuple[str, object]]:
    """The public attributes that a class and its mixins define themselves; validators are pydantic's."""
    decorators = cls.__pydantic_decorators__
    validators = {
        name for group in dataclasses.fields(decorators) for name in getattr(decorators, group.name)
    }
    seen: set[str] = set()
    for owner in cls.__mro__:
        if any(issubclass(base, owner) for base in bases):
            continue
        for name, value in vars(owner).items():
            if not name.startswith("_") and name not in seen | validators:
                seen.add(name)
                yield name, value


def _types(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation names."""
    if typing.get_origin(annotation) is typing.Literal:
        return
    yield typing.get_origin(annotation) or annotation
    for part in typing.get_args(annotation):
        yield from _types(part)
