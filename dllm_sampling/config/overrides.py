"""Overrides of a run: a path of settings and its value."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from dllm_sampling.config.sampler_settings import SamplerSettings, unknown_setting
from dllm_sampling.errors import ConfigurationError, shown
from dllm_sampling.inputs.config_files import DEEPEST, read_value


def override(run: type[BaseModel], data: dict[str, Any], given: str) -> None:
    """Apply `path.to.key=value` in place; the value is read as YAML."""
    path, equals, text = given.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ConfigurationError(f"an override is written key=value, got {shown(given)}.")
    if not text.strip():
        raise ConfigurationError(f"override {shown(given)} has no value; write null for none.")
    try:
        value = read_value(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"override {shown(given)}: {error}") from None
    set_setting(run, data, path.strip(), value)


def set_setting(run: type[BaseModel], data: dict[str, Any], path: str, value: Any) -> None:
    """Set `path.to.key` of a run, a `RunConfig` as plain data, in place; the path may leave `sampler.` out.

    Raises ConfigurationError for a path that leads nowhere.
    """
    keys = path.split(".")
    if len(keys) > DEEPEST:
        raise ConfigurationError(f"{shown(path)} has {len(keys)} parts; at most {DEEPEST} are read.")
    if keys[0] in SamplerSettings.model_fields:
        keys.insert(0, "sampler")
    elif keys[0] not in run.model_fields:
        known = [*run.model_fields, *SamplerSettings.model_fields]
        raise ConfigurationError(unknown_setting(run, data, keys[0], "", known, short=True))
    here: Any = data
    for depth in range(1, len(keys)):
        here = _descend(here, keys[:depth])
    if isinstance(here, list):
        here[_place(here, keys)] = value
    else:
        here[keys[-1]] = value


def _descend(here: Any, keys: list[str]) -> Any:
    """What stands at `keys`, whose parent is `here`, as something that has settings of its own."""
    place: Any = _place(here, keys) if isinstance(here, list) else keys[-1]
    found = here[place] if isinstance(here, list) else here.get(place)
    if found is None:
        found = _default(keys)
    if isinstance(found, str):
        found = {"name": found}
    elif isinstance(found, BaseModel):
        found = found.model_dump()
    elif isinstance(found, tuple):
        found = list(found)
    if not isinstance(found, (dict, list)):
        raise ConfigurationError(f"{'.'.join(keys)} is {shown(found)}, which has no settings of its own.")
    here[place] = found
    return found


def _default(keys: list[str]) -> Any:
    """What a slot has by default, so that its parameters can be overridden."""
    if len(keys) == 2 and keys[0] == "sampler" and keys[1] in SamplerSettings.model_fields:
        default = SamplerSettings.model_fields[keys[1]].default
        if isinstance(default, (str, tuple)):
            return default
    return {}


def _place(here: list[Any], keys: list[str]) -> int:
    key = keys[-1]
    if not (key.isascii() and key.isdecimal()) or len(key) > 9 or int(key) >= len(here):
        raise ConfigurationError(
            f"{shown('.'.join(keys))}: the list has {len(here)} entries, counted from 0."
        )
    return int(key)
