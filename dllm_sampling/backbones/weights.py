"""The weights of a folder, looked at before they are loaded: safetensors, inside the folder, floats."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dllm_sampling.backbones.published import read_json
from dllm_sampling.errors import CheckpointError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor, by its name in the files; read from their headers.

    Raises CheckpointError for weights that are missing, damaged, quantised, or said to lie elsewhere.
    """
    found: dict[str, list[int]] = {}
    for name in _files(folder):
        try:
            with safe_open(folder / name, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118 - it is no mapping
                    header = file.get_slice(tensor)
                    if header.get_dtype() not in _FLOATS:
                        raise CheckpointError(
                            f"{name}: tensor {tensor} holds {header.get_dtype()}, as quantised exports do; "
                            "their codes are no weights. Load the original checkpoint, with quantization=."
                        )
                    found[tensor] = header.get_shape()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"the weights cannot be read: {name}: {error}") from None
    return found


def _files(folder: Path) -> Iterable[str]:
    if (folder / _WHOLE).exists():
        return [_WHOLE]
    index = read_json(folder, _INDEX)
    if index is None:
        names = sorted(path.name for path in folder.iterdir())
        pickles = [name for name in names if name.endswith(_PICKLES)]
        why = f" {pickles[0]} is a pickle, which is never read: it could run code." if pickles else ""
        if any(name.endswith(".safetensors") for name in names):
            raise CheckpointError(f"holds neither {_WHOLE} nor {_INDEX}.{why}")
        raise CheckpointError(f"holds no .safetensors file.{why}")
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{_INDEX} has no object 'weight_map'.")
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(f"{_INDEX} has no object 'metadata'.")
    for name in files.values():
        plain = isinstance(name, str) and name == Path(name).name and not set(name) & set("/\\:\0")
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{_INDEX} names {str(name)[:100]!r}, which is no .safetensors file of the folder."
            )
        if not (folder / name).is_file():
            raise CheckpointError(f"{_INDEX} names {name}, which is missing.")
    return sorted(set(files.values()))
