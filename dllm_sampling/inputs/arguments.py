"""Checks of single arguments."""

from __future__ import annotations

from numbers import Integral

from dllm_sampling.errors import ConfigurationError, DllmSamplingError, shown


def is_whole(value: object) -> bool:
    """Whether it is a whole number of Python or numpy; truth values are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(
    name: str,
    value: object,
    *,
    least: int | None = None,
    most: int | None = None,
    error: type[DllmSamplingError] = ConfigurationError,
) -> int:
    """`value` as an int; raises `error` where it is no whole number or not from `least` to `most`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise error(f"{name} must be a whole number, got {shown(value)}.")
    number = int(value)
    if least is not None and number < least:
        raise error(f"{name} must be at least {least}, got {shown(number)}.")
    if most is not None and number > most:
        raise error(f"{name} must be at most {most}, got {shown(number)}.")
    return number


def flag(name: str, value: object) -> bool:
    """`value` itself; raises ConfigurationError where it is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {shown(value)}.")
    return value
