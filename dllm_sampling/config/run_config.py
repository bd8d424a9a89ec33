"""A whole run as data: YAML, TOML, JSON, keyword arguments and overrides, validated in one place."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from dllm_sampling.backbones import Backbone
from dllm_sampling.backbones.execution import Compile
from dllm_sampling.config.overrides import override
from dllm_sampling.config.sampler_settings import SamplerSettings, validated
from dllm_sampling.errors import ConfigurationError, in_one_line, shown
from dllm_sampling.inputs.config_files import read_mapping
from dllm_sampling.inputs.settings import LARGEST_INT, Settings
from dllm_sampling.loading.checkpoint import load_model
from dllm_sampling.plugins.discovery import use_folder

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

    model_config = ConfigDict(use_attribute_docstrings=True)

    # The first field: it is validated, and the folder loaded, before policies are looked up by their names.
    plugins: str | None = None
    """A folder of one-file plugins, relative to the file that names it; loaded at once."""
    model: ModelSettings = ModelSettings()
    """The checkpoint."""
    sampler: SamplerSettings = Field(default_factory=SamplerSettings)
    """The policies."""
    gen_length: int = Field(256, ge=1)
    """Targets behind each prompt."""
    seed: int = Field(0, ge=-LARGEST_INT - 1)
    """Of the noise and of random policies."""
    chat_template: bool = True
    """Whether prompts become chat messages."""

    @field_validator("plugins")
    @classmethod
    def _in_use(cls, folder: str | None) -> str | None:
        return None if folder is None else use_folder(folder)

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None = None, *, overrides: Sequence[str] = ()) -> RunConfig:
        """A run from plain data.

        Args:
            settings: What a file would hold; defaults alone where it is not given.
            overrides: Changes such as `sampler.unmasking.threshold=0.8`. One may leave `sampler.` out. A
                policy given by name alone takes them, too.

        Returns:
            The run.

        Raises:
            ConfigurationError: Something is unknown or cannot work.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigurationError(f"a run is a mapping of settings, not {shown(settings)}.")
        try:
            data = copy.deepcopy(dict(settings or {}))
        except RecursionError:
            raise ConfigurationError("the settings of a run are nested too deeply.") from None
        if _STUDY & data.keys():
            raise ConfigurationError("this is a study, not a run: `dllm-sampling compare` runs it.")
        for given in overrides:
            override(cls, data, given)
        return validated(cls, data)

    @classmethod
    def read(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
        """A run from a file.

        Args:
            path: A .yaml, .toml or .json file.
            overrides: As in `of`.

        Returns:
            The run.

        Raises:
            ConfigurationError: Something is unknown or cannot work; an error of the file's own names it.
        """
        data = cls.read_data(path)
        try:
            return cls.of(data, overrides=overrides)
        except ConfigurationError as error:
            if overrides and str(error) != cls._trouble(data):
                raise  # the file is not to blame
            raise ConfigurationError(f"{in_one_line(str(path), 300)}: {error}") from None

    @classmethod
    def read_data(cls, path: str | Path) -> dict[str, Any]:
        """What a file holds, not validated yet; the folder of plugins is found from the file's own.

        Args:
            path: A .yaml, .toml or .json file.

        Returns:
            Its settings, unchecked.
        """
        data = read_mapping(path)
        folder = data.get("plugins")
        if isinstance(folder, str) and folder.strip():
            data["plugins"] = os.path.join(os.path.abspath(Path(path).parent), os.path.expanduser(folder))
        return data

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
