"""LoRA adapters, merged into the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from dllm_sampling.backbones.published import read_json
from dllm_sampling.errors import CheckpointError, ConfigurationError, shown
from dllm_sampling.loading.folder import checkpoint_folder


def merge_adapter(model: PreTrainedModel, adapter: str | Path, renaming: Mapping[str, str]) -> None:
    """Add a LoRA adapter to the weights of a model, in place; `renaming` is that of its checkpoint."""
    try:
        import peft
        from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
    except ImportError:
        raise ConfigurationError(f"adapter={str(adapter)!r} needs peft: pip install peft.") from None
    folder = checkpoint_folder(adapter, what="adapter")
    _check_adapter(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        if config.peft_type != peft.PeftType.LORA:
            raise CheckpointError(f"it is of type {config.peft_type}; those of type LORA can be merged.")
        if not (folder / "adapter_model.safetensors").is_file():
            raise CheckpointError("it holds no adapter_model.safetensors; pickled weights are never read.")
        saved = load_peft_weights(str(folder), device="cpu")
        weights = {_renamed(name, renaming): tensor for name, tensor in saved.items()}
        if weights.keys() != saved.keys():
            _retarget(config, weights)
        config.inference_mode = True
        adapted = peft.get_peft_model(model, config)
        report: Any = set_peft_model_state_dict(adapted, weights)
        missing = [name for name in report.missing_keys if ".lora_" in name]
        if missing or report.unexpected_keys:
            names = ", ".join([*missing, *report.unexpected_keys][:5])
            raise CheckpointError(f"its tensors are not those of this model: {names}.")
        adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise CheckpointError(f"adapter {folder}: {error}") from error


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter whose settings cannot be read or name code."""
    try:
        settings = read_json(folder, "adapter_config.json")
        if settings is None:
            raise CheckpointError("holds no adapter_config.json.")
        for key in ("megatron_config",):
            if settings.get(key):
                raise CheckpointError(
                    f"adapter_config.json says {key}={shown(settings[key])}, which names code."
                )
    except CheckpointError as error:
        raise CheckpointError(f"adapter {folder}: {error}") from None


_PEFT_PREFIX = "base_model.model."


def _renamed(name: str, renaming: Mapping[str, str]) -> str:
    inner = name.removeprefix(_PEFT_PREFIX)
    for theirs, ours in renaming.items():
        found, times = re.subn(theirs, ours, inner)
        if times:
            return _PEFT_PREFIX + found
    return name


def _retarget(config: Any, weights: Mapping[str, Tensor]) -> None:
    """Point an adapter's settings at the modules whose tensors it has, under their names here."""
    for setting in ("modules_to_save", "rank_pattern", "alpha_pattern"):
        if getattr(config, setting, None):
            raise CheckpointError(
                f"its {setting} names modules of the published model, which has other names here."
            )
    names = [name.removeprefix(_PEFT_PREFIX) for name in weights]
    config.target_modules = sorted({name.partition(".lora_")[0] for name in names})
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
