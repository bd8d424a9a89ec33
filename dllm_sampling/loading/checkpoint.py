"""From a folder or a hub id to a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from dllm_sampling.backbones import special_ids, weights
from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.execution import COMPILE_CHOICES, Compile
from dllm_sampling.backbones.published import read_json
from dllm_sampling.errors import CheckpointError, ConfigurationError, shown, unknown_name
from dllm_sampling.loading.adapters import merge_adapter
from dllm_sampling.loading.folder import checkpoint_folder
from dllm_sampling.loading.placement import device_of, dtype_of, placement, quantization_of
from dllm_sampling.plugins.blame import Blame
from dllm_sampling.plugins.discovery import registry


def load_model(
    source: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    compile: Compile = "auto",
    quantization: str | Mapping[str, Any] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tensor_parallel: bool = False,
    adapter: str | Path | None = None,
) -> Backbone:
    """Load a checkpoint in its published format.

    Code that comes with a checkpoint never runs and nothing asks whether it may; no pickle is read, and no
    file outside the folder. Every key of its config is honoured, known to be harmless, or refused.

    Args:
        source: A local folder or a hub id; None for the bundled model.
        dtype: float32, bfloat16, float16 or float64; the weights are read in it, never cast afterwards.
        device: Where the weights go.
        attn_implementation: sdpa, eager, or any other that the installed transformers knows.
        revision: Of a hub id.
        compile: auto, on or off, see `backbones.execution`; what it came to is `str(backbone.execution)`.
        quantization: torchao-int8, bitsandbytes-int8 or bitsandbytes-nf4, or the mapping of any method that
            transformers knows (`quant_method` and its options). Needs the extra `quantization`.
        device_map: "auto" or another of transformers' ways to spread layers over devices, memory and disk.
        tensor_parallel: Split every layer over the processes of a torchrun.
        adapter: A LoRA adapter as `peft` saves it, a folder or a hub id, merged into the weights. Its tensors
            may have the names of the published model or of the stock class. Needs `peft`.

    Returns:
        The model, in the class of its family.

    Raises:
        CheckpointError: The folder is missing, damaged, incomplete or of no known family; the error names
            file and key.
        ConfigurationError: An argument cannot work.
    """
    if not isinstance(compile, str) or compile not in COMPILE_CHOICES:
        raise ConfigurationError(unknown_name("compile", compile, COMPILE_CHOICES))
    if not isinstance(attn_implementation, str):
        raise ConfigurationError(f"attn_implementation={attn_implementation!r} is no name: sdpa, eager, ...")
    if not isinstance(tensor_parallel, bool):
        raise ConfigurationError(f"tensor_parallel={tensor_parallel!r} is neither True nor False.")
    folder, config, family = _family(source, revision)
    if adapter is not None and (quantization is not None or tensor_parallel):
        raise ConfigurationError(
            f"adapter={str(adapter)!r} is merged into the weights, which cannot be quantised or split: leave "
            "quantization and tensor_parallel out, or load with compile='off' and put the adapter on "
            "`backbone.model` with peft."
        )
    parsed = device_of(device)
    where = placement(parsed, device_map, tensor_parallel, quantization is not None)
    how = {
        "dtype": dtype_of(dtype),
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_of(quantization, dtype_of(dtype)),
        **where,
    }
    try:
        with _quiet():
            tokenizer = _asked(family, "load_tokenizer", folder)
        model, renaming = _load(family, folder, config, how, None if where else parsed)
        if adapter is not None:
            merge_adapter(model, adapter, renaming)
        return family(_asked(family, "finish", model), tokenizer, compile=compile)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def load_tokenizer(source: str | Path | None = None, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without its weights. CheckpointError where it has none."""
    folder, _, family = _family(source, revision)
    try:
        with _quiet():
            tokenizer: PreTrainedTokenizerBase | None = _asked(family, "load_tokenizer", folder)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if tokenizer is None:
        raise CheckpointError(f"{folder}: holds no tokenizer.")
    return tokenizer


def _family(source: str | Path | None, revision: str | None) -> tuple[Path, dict[str, Any], type[Backbone]]:
    """A checkpoint's folder, its config.json, and the family that it is of."""
    folder = checkpoint_folder(source, revision)
    try:
        config = read_json(folder, "config.json")
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if config is None:
        raise CheckpointError(f"{folder}: holds no config.json.")
    families = registry().classes("backbone")
    family = next((f for f in families.values() if _asked(f, "matches", config)), None)
    if family is None:
        saved = ""
        if config.get("mask_token_id") is not None and config.get("is_causal") is False:
            saved = (
                " It looks like what transformers saves of a loaded model: a stock model, whose family "
                "is no longer in the file. Put its weights into a copy of the original folder instead."
            )
        raise CheckpointError(
            f"{folder}: config.json says model_type={shown(config.get('model_type'))}; known families: "
            f"{', '.join(families) or 'none'}.{saved}"
        )
    return folder, config, family


def _asked(family: type[Backbone], name: str, given: object) -> Any:
    """What a family answers, its own code's errors told with its name."""
    method = getattr(family, name)
    with Blame(f"the model family {family.name!r}: {name}", method, CheckpointError):
        return method(given)


def _load(
    family: type[Backbone],
    folder: Path,
    config: dict[str, Any],
    how: dict[str, Any],
    device: torch.device | None,
) -> tuple[PreTrainedModel, dict[str, str]]:
    """A model, and the renaming of its tensors."""
    stock, stock_config, renaming = _asked(family, "stock", config)
    # A plain attribute that transformers reads at every forward: attention in both directions.
    stock_config.is_causal = False
    ends = _all_ends(folder, stock_config)
    stock_config.eos_token_id = ends or None
    _check_sizes(stock_config, weights.shapes(folder), family.keys)
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            "holds an adapter_config.json beside the weights, and transformers would put that adapter on the "
            "model: move it into a folder of its own, and give that as adapter=."
        )
    try:
        with _quiet():  # what transformers would warn of is an error below
            loaded: Any = stock.from_pretrained(
                folder,
                config=stock_config,
                # Given, so that transformers reads no further file.
                generation_config=GenerationConfig(
                    eos_token_id=stock_config.eos_token_id, pad_token_id=stock_config.pad_token_id
                ),
                key_mapping=renaming or None,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                **how,
            )
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the weights cannot be read: {error}") from error
    except ImportError as error:
        raise ConfigurationError(f"a package is missing for these settings: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"the weights do not fit: {error}") from error
    model, report = loaded
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(key):
            names = sorted(str(name) for name in report[key])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(f"{key.replace('_', ' ')}: {', '.join(names[:5])}{more}.")
    if device is not None:
        model = model.to(device)  # the device alone: casting would round the rotary frequencies
    return cast(PreTrainedModel, model), renaming


def _all_ends(folder: Path, config: PretrainedConfig) -> list[int]:
    """The ends of a text that both configs name; generation_config.json may name the mask too."""
    size: int = getattr(config, "written_vocab_size", None) or config.get_text_config().vocab_size
    generation = read_json(folder, "generation_config.json") or {}
    named = special_ids.mask_id(generation, size, "generation_config.json")
    configured = getattr(config, "mask_token_id", None)
    if named is not None and configured is not None and named != configured:
        raise CheckpointError(
            f"config.json says mask_token_id={configured}, and generation_config.json {named}; which of them "
            "was trained?"
        )
    config.mask_token_id = named if configured is None else configured
    ends = special_ids.end_ids({"eos_token_id": config.eos_token_id}, size)
    ends += special_ids.end_ids(generation, size, "generation_config.json")
    return list(dict.fromkeys(ends))


def _check_sizes(config: PretrainedConfig, shapes: Mapping[str, list[int]], keys: Mapping[str, str]) -> None:
    """Refuse sizes that no tensor has before anything of that size is made."""
    text = config.get_text_config()
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    limits = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), largest)
    for name, limit in {**limits, "num_hidden_layers": len(shapes)}.items():
        value = getattr(text, name, 0)
        if value > limit:
            what = "tensors" if name == "num_hidden_layers" else "as the longest side of a tensor"
            raise CheckpointError(
                f"config.json says {keys.get(name, name)}={value}, and the weights have only {limit} {what}."
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal."""
    progress = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()
