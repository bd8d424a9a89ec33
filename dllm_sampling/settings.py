"""The settings of a sampler, and the one place of their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dllm_sampling.errors import ConfigurationError, unknown_name
from dllm_sampling.named import Named
from dllm_sampling.observation import Sampling
from dllm_sampling.plugins import describe
from dllm_sampling.policies import (
    LogitsTransform,
    Nested,
    NestedBlockSchedule,
    NestedCachePolicy,
    NestedUnmaskingPolicy,
    Observer,
    Wrapper,
)

M = TypeVar("M", bound=BaseModel)


class SamplerSettings(BaseModel):
    """Which policies decode, and how candidates are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    unmasking: NestedUnmaskingPolicy = Field(
        default="confidence_threshold",  # type: ignore[assignment]  # validated into a policy
        description="Which predicted positions are committed.",
    )
    cache: NestedCachePolicy = Field(
        default="none",  # type: ignore[assignment]  # validated into a policy
        description="Which positions each forward recomputes.",
    )
    schedule: NestedBlockSchedule = Field(
        default="fixed_blocks",  # type: ignore[assignment]  # validated into a policy
        description="Which span is worked on.",
    )
    transforms: tuple[Annotated[LogitsTransform, Nested(LogitsTransform)], ...] = Field(
        default=(), description="Changes to the logits, in order."
    )
    wrappers: tuple[Annotated[Wrapper, Nested(Wrapper)], ...] = Field(
        default=(), description="Changes to what policies do; a later one stands around an earlier one."
    )
    observers: tuple[Annotated[Observer, Nested(Observer)], ...] = Field(
        default=(), description="Policies that watch."
    )
    sampling: Sampling = Field(default=Sampling(), description="How candidates are drawn.")
    stop_at_eos: bool = Field(
        default=True,
        description="Finish a row when an end of sequence is committed and nothing before it is masked.",
    )
    batch_size: int = Field(default=8, ge=1, description="Rows decoded together.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SamplerSettings:
        """Validate settings; raise ConfigurationError naming parameter, value and what is allowed."""
        return validated(cls, settings)


def validated(model: type[M], settings: Mapping[str, Any]) -> M:
    """`model` from plain data; unknown keys, at any depth, are refused with the nearest match."""
    refuse_unknown(model, settings, "")
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigurationError(describe(error)) from None


def refuse_unknown(model: type[BaseModel], settings: Mapping[str, Any], path: str) -> None:
    """Raise ConfigurationError for the first key that `model` does not have."""
    for key, value in settings.items():
        if key not in model.model_fields:
            where = f" in {path}" if path else ""
            raise ConfigurationError(unknown_name(f"setting{where}", key, model.model_fields))
        inner = model.model_fields[key].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)) or issubclass(inner, Named):
            continue  # policies and tasks name their own parameters
        if isinstance(value, Mapping):
            refuse_unknown(inner, value, f"{path}.{key}" if path else key)
