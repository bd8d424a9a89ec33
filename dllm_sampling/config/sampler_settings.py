"""The settings of a sampler, and the one place of their defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dllm_sampling.errors import ConfigurationError, nearest, shown, unknown_name
from dllm_sampling.inputs.settings import Settings
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.plugins.nested import Nested, NestedBlockSchedule, NestedCachePolicy, NestedUnmaskingPolicy
from dllm_sampling.plugins.registry import KIND_TITLES, describe
from dllm_sampling.policies.kinds import KINDS, LogitsTransform, Observer, Wrapper
from dllm_sampling.policies.named import Named
from dllm_sampling.state.sampling import Sampling

M = TypeVar("M", bound=BaseModel)


class SamplerSettings(Settings):
    """Which policies decode, and how candidates are drawn."""

    model_config = ConfigDict(validate_default=True, use_attribute_docstrings=True)

    unmasking: NestedUnmaskingPolicy = Field(
        default="confidence_threshold",  # type: ignore[assignment]  # validated into a policy
    )
    """Which predicted positions are committed."""
    cache: NestedCachePolicy = Field(
        default="none",  # type: ignore[assignment]  # validated into a policy
    )
    """Which positions each forward recomputes."""
    schedule: NestedBlockSchedule = Field(
        default="fixed_blocks",  # type: ignore[assignment]  # validated into a policy
    )
    """Which span is worked on."""
    transforms: tuple[Annotated[LogitsTransform, Nested(LogitsTransform)], ...] = Field(default=())
    """Changes to the logits, in order."""
    wrappers: tuple[Annotated[Wrapper, Nested(Wrapper)], ...] = Field(default=())
    """Changes to what policies do; a later one stands around an earlier one."""
    observers: tuple[Annotated[Observer, Nested(Observer)], ...] = Field(default=())
    """Policies that watch."""
    sampling: Sampling = Field(default=Sampling())
    """How candidates are drawn."""
    stop_at_eos: bool = Field(default=True)
    """Finish a row when an end of sequence is committed and nothing before it is masked."""
    batch_size: int = Field(default=8, ge=1)
    """Rows decoded together."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SamplerSettings:
        """Settings from plain data.

        Args:
            settings: Policies by name, mapping or instance, and the rest by name.

        Returns:
            Every setting, defaults included.

        Raises:
            ConfigurationError: Something is unknown or cannot work; it names parameter, value and what is
                allowed.
        """
        return validated(cls, settings)


def validated(model: type[M], settings: Mapping[str, Any]) -> M:
    """`model` from plain data; unknown keys, at any depth, are refused with the nearest match."""
    refuse_unknown(model, settings, "")
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigurationError(describe(error, model)) from None


def refuse_unknown(
    model: type[BaseModel],
    settings: Mapping[str, Any],
    path: str,
    whole: tuple[type[BaseModel], Mapping[str, Any]] | None = None,
) -> None:
    """Raise ConfigurationError for the first key that `model` does not have, and say where it belongs.

    `whole`: the settings that these are part of, at `path`.
    """
    whole = whole or (model, settings)
    for key, value in settings.items():
        if key not in model.model_fields:
            raise ConfigurationError(unknown_setting(*whole, key, path, model.model_fields))
        inner = model.model_fields[key].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)) or issubclass(inner, Named):
            continue  # policies and tasks name their own parameters
        if isinstance(value, Mapping):
            refuse_unknown(inner, value, f"{path}.{key}" if path else key, whole)


def unknown_setting(
    model: type[BaseModel],
    settings: Mapping[str, Any],
    key: object,
    path: str,
    known: Iterable[str],
    *,
    short: bool = False,
) -> str:
    """A message for a setting that is not known at `path` of the settings of `model`.

    It names the place where a setting of that name belongs, the sampler's chosen policies included.
    `short`: without `sampler.`, as overrides may be written.
    """
    what = f"setting in {path}" if path else "setting"
    if not isinstance(key, str):
        return unknown_name(what, key, known)
    known = list(known)
    places = [place.removeprefix("sampler.") if short else place for place in _places(model, settings)]
    leaves = {place.rpartition(".")[2]: place for place in reversed(places)}
    if key in leaves:
        here = [place for place in places if place.rpartition(".")[2] == key][:3]
        return f"unknown {what} {shown(key)}. Did you mean {' or '.join(map(repr, here))}?"
    close = nearest(key, {*known, *leaves})
    if close in known or close is None:
        owners = _owners(key)
        if not owners or nearest(key, known) is not None:
            return unknown_name(what, key, known)
        return (
            f"unknown {what} {shown(key)}: it is a parameter of {' and '.join(owners[:4])}, not chosen here."
        )
    return f"unknown {what} {shown(key)}. Did you mean {leaves[close]!r}?"


def _places(model: type[BaseModel], settings: object, path: str = "") -> Iterator[str]:
    """The path of every setting, those of the chosen policies included."""
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        yield place
        value = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
        value = field.get_default() if value is None else value
        kind = field.annotation
        if isinstance(value, (list, tuple)):
            inner = next((part for part in get_args(kind) if isinstance(part, type)), None)
            inner = inner or next((get_args(part)[0] for part in get_args(kind) if get_args(part)), None)
            for number, item in enumerate(value):
                yield from _places_of(inner, item, f"{place}.{number}")
        else:
            yield from _places_of(kind, value, place)


def _places_of(kind: object, value: object, path: str) -> Iterator[str]:
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return
    if issubclass(kind, Named):
        name = value.get("name") if isinstance(value, Mapping) else value
        found = registry().classes(kind.kind).get(name) if isinstance(name, str) else type(value)
        if not (isinstance(found, type) and issubclass(found, kind)):
            return
        kind = found
    yield from _places(kind, value, path)


def _owners(parameter: str) -> list[str]:
    """The policies that have a parameter, as a message names them."""
    return [
        f"{KIND_TITLES[kind.kind]} {name!r}"
        for kind in KINDS
        for name, cls in registry().classes(kind.kind).items()
        if parameter in cls.model_fields
    ]
