"""Device, dtype and quantisation of a model, as transformers is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    TorchAoConfig,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from dllm_sampling.errors import ConfigurationError, shown, unknown_name

_DTYPES = ("float32", "bfloat16", "float16", "float64")


_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def placement(
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
            device_of(device_map, "device_map", _DEVICE_MAPS)
        return {"device_map": device_map}
    return {"device_map": {"": device}} if quantized else {}


QUANTIZATIONS = ("torchao-int8", "bitsandbytes-int8", "bitsandbytes-nf4")


def quantization_of(given: str | Mapping[str, Any] | None, dtype: torch.dtype) -> Any:
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


def device_of(device: str | torch.device, what: str = "device", others: tuple[str, ...] = ()) -> torch.device:
    """The device of that name; ConfigurationError where this machine has none such."""
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


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of that name; ConfigurationError for one that no weights are read in."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ConfigurationError(unknown_name("dtype", dtype, _DTYPES))
    found: torch.dtype = getattr(torch, dtype)
    return found
