"""From a folder or a hub id to a backbone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TorchAoConfig,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import logging as transformers_logging

from dllm_sampling.backbones import special_ids, weights
from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.execution import COMPILE_CHOICES, Compile
from dllm_sampling.backbones.published import read_json, shown
from dllm_sampling.errors import CheckpointError, ConfigurationError, unknown_name
from dllm_sampling.plugins import registry

_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "*.model")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
BUNDLED = Path(__file__).parent.parent / "bundled" / "word-problems"


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

    source: a local folder or a hub id; None for the bundled model.
    dtype: float32, bfloat16, float16 or float64; the weights are read in it, never cast afterwards.
    attn_implementation: sdpa, eager, or any other that the installed transformers knows.
    compile: auto, on or off, see `backbones.execution`; what it came to is `str(backbone.execution)`.
    quantization: torchao-int8, bitsandbytes-int8 or bitsandbytes-nf4, or the mapping of any method that
        transformers knows (`quant_method` and its options). Needs the extra `quantization`.
    device_map: "auto" or another of transformers' ways to spread layers over devices, memory and disk.
    tensor_parallel: split every layer over the processes of a torchrun.
    adapter: a LoRA adapter as `peft` saves it, a folder or a hub id, merged into the weights. Its tensors may
        have the names of the published model or of the stock class. Needs `peft`.
    Code that comes with a checkpoint never runs and nothing asks whether it may; no pickle is read, and no
    file outside the folder. Every key of its config is honoured, known to be harmless, or refused.
    Raises CheckpointError for a folder that is missing, damaged, incomplete or of no known family, and names
    file and key; ConfigurationError for the arguments.
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
    parsed = _device(device)
    where = _placement(parsed, device_map, tensor_parallel, quantization is not None)
    how = {
        "dtype": _dtype(dtype),
        "attn_implementation": attn_implementation,
        "quantization_config": _quantization(quantization, _dtype(dtype)),
        **where,
    }
    try:
        with _quiet():
            tokenizer = family.load_tokenizer(folder)
        model, renaming = _load(family, folder, config, how, None if where else parsed)
        if adapter is not None:
            _merge_adapter(model, adapter, renaming)
        return family(family.finish(model), tokenizer, compile=compile)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def load_tokenizer(source: str | Path | None = None, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without its weights. CheckpointError where it has none."""
    folder, _, family = _family(source, revision)
    try:
        with _quiet():
            tokenizer = family.load_tokenizer(folder)
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
    family: type[Backbone] | None = next((f for f in families.values() if f.matches(config)), None)
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


def _load(
    family: type[Backbone],
    folder: Path,
    config: dict[str, Any],
    how: dict[str, Any],
    device: torch.device | None,
) -> tuple[PreTrainedModel, dict[str, str]]:
    """A model, and the renaming of its tensors."""
    stock, stock_config, renaming = family.stock(config)
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


def _merge_adapter(model: PreTrainedModel, adapter: str | Path, renaming: Mapping[str, str]) -> None:
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


_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def _placement(
    device: torch.device,
    device_map: str | Mapping[str, Any] | None,
    tensor_parallel: bool,
    quantized: bool,
) -> dict[str, Any]:
    """What transformers is told of where weights go; nothing where they are moved afterwards."""
    if device_map is not None and (tensor_parallel or device != torch.device("cpu")):
        raise ConfigurationError(
            f"device_map={device_map!r} places every layer: leave device and tensor_parallel out."
        )
    if tensor_parallel:
        if not torch.distributed.is_torchelastic_launched():
            raise ConfigurationError(
                "tensor_parallel=True splits layers over the processes of a torchrun: start the program with "
                "`torchrun --nproc-per-node N`."
            )
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    if isinstance(device_map, Mapping):
        return {"device_map": dict(device_map)}
    if device_map is not None:
        if device_map not in _DEVICE_MAPS:
            _device(device_map, "device_map", _DEVICE_MAPS)
        return {"device_map": device_map}
    return {"device_map": {"": device}} if quantized else {}


QUANTIZATIONS = ("torchao-int8", "bitsandbytes-int8", "bitsandbytes-nf4")


def _quantization(given: str | Mapping[str, Any] | None, dtype: torch.dtype) -> Any:
    """transformers' own settings object."""
    if given is None:
        return None
    try:
        if not isinstance(given, (str, Mapping)):
            raise ConfigurationError(f"quantization={shown(given)} is neither a name nor a mapping.")
        if not isinstance(given, str):
            return AutoQuantizationConfig.from_dict(dict(given))
        if given == "torchao-int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig())
        if given == "bitsandbytes-int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        if given == "bitsandbytes-nf4":
            return BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
    except ImportError as error:
        raise ConfigurationError(
            f"quantization={given!r}: {error}; pip install 'dllm-sampling[quantization]'."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"quantization={shown(given)}: {error}") from None
    raise ConfigurationError(unknown_name("quantization", given, QUANTIZATIONS))


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


def checkpoint_folder(
    source: str | Path | None = None, revision: str | None = None, *, what: str = "model"
) -> Path:
    """Where a checkpoint lies on this machine; a hub id is downloaded."""
    if not isinstance(source, (str, Path, type(None))) or not (revision is None or isinstance(revision, str)):
        known = isinstance(source, (str, Path, type(None)))
        given = f"revision={shown(revision)}" if known else f"{what}={shown(source)}"
        raise ConfigurationError(f"{given} is no text: a folder or a hub id, and perhaps its revision.")
    if source is None:
        return BUNDLED
    if not str(source).strip():
        raise CheckpointError(f"the {what} folder has an empty name.")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise CheckpointError(f"the {what} {str(source)!r} is a file; give the folder that it lies in.")
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the {what} folder {shown(str(source))} cannot be opened: {error}") from None
    if isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~")):
        raise CheckpointError(f"the {what} folder {str(source)!r} does not exist.")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise CheckpointError(f"{source!r} is neither a folder nor a hub id: {error}") from None
    except Exception as error:
        raise CheckpointError(
            f"{source!r} is no local folder, and the hub did not give it: {type(error).__name__}: {error}"
        ) from error


def _device(device: str | torch.device, what: str = "device", others: tuple[str, ...] = ()) -> torch.device:
    known = ", ".join((*others, "cpu", "cuda", "cuda:1", "mps"))
    wrong = ConfigurationError(f"{what} {shown(device)} is none of torch's: {known}, ...")
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise wrong
    try:
        parsed = torch.device(device)
    except (RuntimeError, ValueError, OverflowError):
        raise wrong from None
    if parsed.type == "meta":
        raise ConfigurationError(f"{what} {str(device)!r} computes nothing.")
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(f"{what} {str(parsed)!r}: this machine or this torch has no CUDA.")
    try:
        torch.empty(0, device=parsed)
    except Exception as error:  # noqa: BLE001 - each kind of device fails in its own way
        reason = str(error).strip().split("\n")[0]
        raise ConfigurationError(f"{what} {str(parsed)!r} is not to be had here: {reason[:200]}") from None
    return parsed


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ConfigurationError(unknown_name("dtype", dtype, _DTYPES))
    found: torch.dtype = getattr(torch, dtype)
    return found
