"""A whole run as data: YAML, TOML, JSON, keyword arguments and overrides, validated in one place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator
from pydantic.errors import PydanticUserError

from dllm_sampling.backbones import Backbone, load_model
from dllm_sampling.backbones.execution import Compile
from dllm_sampling.config_files import DEEPEST, read_mapping, read_value
from dllm_sampling.errors import ConfigurationError, PluginWarning, in_one_line, shown, told
from dllm_sampling.named import LARGEST_INT, Settings
from dllm_sampling.plugins import registry
from dllm_sampling.policies import KINDS, POLICY_MARK
from dllm_sampling.settings import SamplerSettings, unknown_setting, validated

# What a study has and a run has not.
_STUDY = {"samplers", "tasks", "baseline"}


class ModelSettings(Settings):
    """Which checkpoint, and how it is loaded."""

    source: str | None = Field(None, description="A folder or a hub id; none for the bundled model.")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="The dtype in which the weights are read."
    )
    device: str = Field("cpu", description="A torch device, such as cpu or cuda:0.")
    attn_implementation: str = Field("sdpa", description="sdpa, eager, or another of transformers'.")
    revision: str | None = Field(None, description="Of a hub id.")
    compile: Compile = Field(
        "auto",
        description="auto: packed weights on a CPU, compiled steps on a GPU; on: both; off: plain torch.",
    )

    quantization: str | dict[str, Any] | None = Field(
        None, description="torchao-int8, bitsandbytes-int8, bitsandbytes-nf4, or transformers' own mapping."
    )
    device_map: str | dict[str, Any] | None = Field(
        None, description="auto, or another way of transformers' to spread layers over devices."
    )
    tensor_parallel: bool = Field(False, description="Split layers over the processes of a torchrun.")
    adapter: str | None = Field(None, description="A LoRA adapter of peft's, a folder or a hub id; merged.")

    @field_validator("compile", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: object) -> object:
        # YAML takes a bare on and off for booleans.
        return ("on" if value else "off") if isinstance(value, bool) else value

    def load(self) -> Backbone:
        """The model. Raises CheckpointError or ConfigurationError where it cannot be loaded."""
        return load_model(**self.model_dump())


class RunConfig(Settings):
    """Everything that decides what a run writes, but the prompts."""

    model: ModelSettings = Field(default=ModelSettings(), description="The checkpoint.")
    sampler: SamplerSettings = Field(default_factory=SamplerSettings, description="The policies.")
    gen_length: int = Field(256, ge=1, description="Targets behind each prompt.")
    seed: int = Field(0, ge=-LARGEST_INT - 1, description="Of the noise and of random policies.")
    chat_template: bool = Field(True, description="Whether prompts become chat messages.")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None = None, *, overrides: Sequence[str] = ()) -> RunConfig:
        """A run from plain data and overrides such as `sampler.unmasking.threshold=0.8`.

        An override may leave `sampler.` out. A policy given by name alone takes overrides too.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigurationError(f"a run is a mapping of settings, not {shown(settings)}.")
        try:
            data = copy.deepcopy(dict(settings or {}))
        except RecursionError:
            raise ConfigurationError("the settings of a run are nested too deeply.") from None
        if _STUDY & data.keys():
            raise ConfigurationError("this is a study, not a run: `dllm-sampling compare` runs it.")
        for override in overrides:
            _override(data, override)
        return validated(cls, data)

    @classmethod
    def read(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
        """A run from a .yaml, .toml or .json file; an error of the file's own names it."""
        data = read_mapping(path)
        try:
            return cls.of(data, overrides=overrides)
        except ConfigurationError as error:
            if overrides and str(error) != cls._trouble(data):
                raise  # the file is not to blame
            raise ConfigurationError(f"{in_one_line(str(path), 300)}: {error}") from None

    @classmethod
    def _trouble(cls, data: Mapping[str, Any]) -> str | None:
        try:
            cls.of(data)
        except ConfigurationError as error:
            return str(error)
        return None

    def to_dict(self) -> dict[str, Any]:
        """Every setting, defaults included; `of` takes it back."""
        return self.model_dump(mode="json")


def _override(data: dict[str, Any], override: str) -> None:
    """Apply `path.to.key=value` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ConfigurationError(f"an override is written key=value, got {shown(override)}.")
    if not text.strip():
        raise ConfigurationError(f"override {shown(override)} has no value; write null for none.")
    try:
        value = read_value(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"override {shown(override)}: {error}") from None
    set_setting(data, path.strip(), value)


def set_setting(data: dict[str, Any], path: str, value: Any) -> None:
    """Set `path.to.key` of a run given as plain data, in place; the path may leave `sampler.` out.

    Raises ConfigurationError for a path that leads nowhere.
    """
    keys = path.split(".")
    if len(keys) > DEEPEST:
        raise ConfigurationError(f"{shown(path)} has {len(keys)} parts; at most {DEEPEST} are read.")
    if keys[0] in SamplerSettings.model_fields:
        keys.insert(0, "sampler")
    elif keys[0] not in RunConfig.model_fields:
        known = [*RunConfig.model_fields, *SamplerSettings.model_fields]
        raise ConfigurationError(unknown_setting(RunConfig, data, keys[0], "", known, short=True))
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


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run, with the parameters of every installed policy."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for kind in KINDS:
        classes = registry().classes(kind.kind)
        options: list[dict[str, Any]] = [{"enum": list(classes)}] if classes else []
        for name, cls in classes.items():
            try:
                own = cls.model_json_schema()
            except PydanticUserError as error:  # a type that JSON does not have
                warnings.warn(
                    f"the parameters of {name} are not in the schema: {told(error)}",
                    PluginWarning,
                    stacklevel=2,
                )
                own = {"properties": {field: {} for field in cls.model_fields}, "additionalProperties": False}
            definitions.update(own.pop("$defs", {}))
            own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
            own["required"] = ["name", *own.get("required", [])]
            definitions[f"{kind.kind}.{name}"] = own
            options.append({"$ref": f"#/$defs/{kind.kind}.{name}"})
        # Nothing is valid where no plugin offers anything.
        definitions[kind.kind] = {"anyOf": options} if options else {"enum": []}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_with_references(schema)}


def _with_references(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _with_references(value) for key, value in node.items() if key != POLICY_MARK}
    if POLICY_MARK in node:
        changed["$ref"] = f"#/$defs/{node[POLICY_MARK]}"
    return changed
