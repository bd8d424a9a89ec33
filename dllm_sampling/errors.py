"""The errors a user can cause, and how they are worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(choices) or 'none'}."
