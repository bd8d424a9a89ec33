"""The errors a user can cause, and how they are worded."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any


class DllmSamplingError(Exception):
    """Base of every error this package raises on purpose; the message says what to change."""


class ConfigurationError(DllmSamplingError, ValueError):
    """A setting, name or combination of settings that cannot work."""


class PromptError(DllmSamplingError, ValueError):
    """An input that cannot be decoded: empty, too long, of the wrong shape."""


class CheckpointError(DllmSamplingError, ValueError):
    """A model folder that cannot be loaded: missing, incomplete, damaged or of an unknown family."""


class PluginError(DllmSamplingError):
    """A plugin that cannot be loaded or that broke the rules of a hook."""


class DecodingError(DllmSamplingError, RuntimeError):
    """A run that cannot go on: logits that are not numbers, or a policy that leaves no way forward."""


class StudyError(DllmSamplingError, RuntimeError):
    """A study that cannot go on: its folder is in use, full or damaged, or something is not installed."""


class PluginWarning(UserWarning):
    """A plugin was skipped; the message says which and why."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """A message for a misspelt name: what was given, the nearest match, and the choices."""
    choices = sorted(known)
    close = nearest(name, choices)
    hint = f" Did you mean {close!r}?" if close else ""
    return f"unknown {kind} {shown(name)}.{hint} Available: {', '.join(choices) or 'none'}."


def nearest(name: object, choices: Iterable[str]) -> str | None:
    """The choice that `name` was most likely meant to be, or None where none is near."""
    given = name[:100] if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(given, sorted(choices), n=1, cutoff=0.5)
    return close[0] if close else None


def no_attribute(owner: object, name: str) -> AttributeError:
    """What a class that plugins read raises for an unknown name: the nearest public one beside it."""
    if name.startswith("_"):
        return AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}")
    known = [known for known in {*dir(type(owner)), *vars(owner)} if not known.startswith("_")]
    if name in known:  # a property of that name has failed: its own error is the one to show
        try:
            object.__getattribute__(owner, name)
        except AttributeError as error:
            return error
    close = nearest(name, known)
    hint = f" Did you mean {close!r}?" if close else f" It has {', '.join(sorted(known))}."
    return AttributeError(f"{type(owner).__name__} has no {name!r}.{hint}")


class _Short(reprlib.Repr):
    """Looks at the first few entries alone, so that even an endless value is shown at once."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 5
        self.maxstring = self.maxother = 100

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write very long integers out.
        return repr(x) if x.bit_length() < 256 else f"<an integer of {x.bit_length()} bits>"

    # reprlib finds it by the name of the type.
    def repr_Tensor(self, x: Any, level: int) -> str:
        # Its values may be many, and on a device that would have to be waited for.
        return f"a tensor {x.dtype} {list(x.shape)}"

    def repr_instance(self, x: object, level: int) -> str:
        try:
            return super().repr_instance(x, level)
        except Exception:  # noqa: BLE001 - whatever its repr raises
            return f"<{type(x).__name__}>"


def shown(value: object, limit: int = 120) -> str:
    """A value as a message shows it: in one line of at most `limit` characters."""
    text = _Short().repr(value)
    return _cut(" ".join(text.split()) if "\n" in text else text, limit)


def in_one_line(text: str, limit: int = 500) -> str:
    """A text in one line of at most `limit` characters, control characters written out."""
    words = " ".join(text[: 4 * limit].split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words)
    return _cut(plain, limit)


# What is obeyed rather than shown: all control characters but newline and tab; what changes the direction
# of a line or separates lines without being seen; halves of surrogate pairs, which no file can hold.
_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_COMMANDS = re.compile(f"[{_OBEYED}]")
_COMMANDS_AND_BREAKS = re.compile(f"[{_OBEYED}\n\t]")


def visible(text: str, *, one_line: bool = False) -> str:
    r"""A text in which nothing is obeyed: control characters stand as Python writes them, such as `\x1b`.

    one_line: newlines and tabs are written out too; else they stay.
    """
    pattern = _COMMANDS_AND_BREAKS if one_line else _COMMANDS
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def told(error: BaseException) -> str:
    """An error's type and message in one line, whatever its message holds or does."""
    try:
        name, message = in_one_line(type(error).__name__, 100), in_one_line(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a plugin's own error may fail or exit when it is asked
        return "an error whose message cannot be read"
    return f"{name}: {message}" if message else name


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
