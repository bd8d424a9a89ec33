"""Token ids from lists, arrays, tensors and what a tokenizer returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dllm_sampling.errors import PromptError, shown, unknown_name
from dllm_sampling.inputs.arguments import is_whole

Array: TypeAlias = "Tensor | np.ndarray[Any, Any]"

# What else a tokenizer may return. None of it says anything about the text that the ids do not.
_BESIDE = {"token_type_ids", "special_tokens_mask", "offset_mapping", "length"}


def is_array(value: object) -> bool:
    """Whether it is a tensor or a numpy array."""
    return isinstance(value, (Tensor, np.ndarray))


def is_encoding(value: object) -> bool:
    """Whether it is what a tokenizer returns: a mapping with `input_ids`."""
    return isinstance(value, Mapping) and "input_ids" in value


def opened(where: str, encoding: Mapping[str, Any]) -> tuple[Any, Any]:
    """The ids of an encoding, and its attention mask or None. Other keys that matter are refused."""
    known = {"input_ids", "attention_mask", *_BESIDE}
    for key in encoding:
        if key not in known:
            raise PromptError(f"{where}: {unknown_name('key beside input_ids', key, known)}")
    return encoding["input_ids"], encoding.get("attention_mask")


def one(where: str, values: Any, mask: Any = None) -> list[int]:
    """The ids of one prompt from a list or a 1-dimensional array; where `mask` is 0, they are padding."""
    ids = _integers(where, "token", values)
    if mask is None:
        return ids
    kept = _integers(where, "attention_mask", mask, truths=True)
    if len(kept) != len(ids):
        raise PromptError(f"{where} has {len(ids)} tokens, its attention_mask {len(kept)} entries.")
    if not set(kept) <= {0, 1}:
        raise PromptError(f"{where}: attention_mask holds {(set(kept) - {0, 1}).pop()}, not only 0 and 1.")
    padding = kept.index(1) if 1 in kept else len(kept)
    if 0 in kept[padding:]:
        raise PromptError("attention_mask must be 0 on the left of each prompt only: pad on the left.")
    return ids[padding:]


def several(name: str, values: Any, mask: Any, pad: int) -> list[list[int]]:
    """The ids of each prompt of `values [batch, prompt]`, an array or a list of rows.

    name: of one prompt, such as "prompt". pad: the id that padding is made of. An array whose rows begin
    or end with padding and that comes without a mask is refused: what of it is text cannot be known.
    """
    if is_array(values):
        _of_integers(f"a tensor of {name}s is [batch, {name}] integers", values, 2)
    if len(values) == 0:
        raise PromptError(f"no {name}s were given.")
    if mask is None:
        rows = [one(f"{name} {i}", row) for i, row in enumerate(values)]
        if is_array(values):
            _refuse_padding(name, rows, pad)
        return rows
    if is_array(mask):
        if tuple(mask.shape) != _shape(values):
            raise PromptError(
                f"attention_mask is {list(mask.shape)}, the {name}s are {list(_shape(values))}."
            )
    elif not _is_list(mask):
        raise PromptError(f"attention_mask must be a tensor of 0 and 1, got {shown(mask)}.")
    elif len(mask) != len(values):
        raise PromptError(f"attention_mask has {len(mask)} rows for {len(values)} {name}s.")
    return [one(f"{name} {i}", row, kept) for i, (row, kept) in enumerate(zip(values, mask, strict=True))]


def marks(where: str, values: Any) -> list[bool]:
    """Truth values of one row, from a list or a 1-dimensional array; 0 and 1 count as such."""
    found = _integers(where, "target", values, truths=True)
    for i, value in enumerate(found):
        if value not in (0, 1):
            raise PromptError(f"{where}, target {i} is {shown(value)}: targets are True or False.")
    return [bool(value) for value in found]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _shape(values: Any) -> tuple[int, ...]:
    if is_array(values):
        return tuple(values.shape)
    widths = {len(row) if _is_list(row) or is_array(row) else -1 for row in values}
    return (len(values), *widths)


def _integers(where: str, name: str, values: Any, *, truths: bool = False) -> list[int]:
    if is_array(values):
        _of_integers(f"{where}: one row is a list or a tensor [n] of integers", values, 1, truths=truths)
        return [int(value) for value in values.tolist()]
    if not _is_list(values):
        raise PromptError(f"{where}: a row of {name}s is a list, got {shown(values)}.")
    if all(type(value) is int for value in values):
        return list(values)
    return [_integer(f"{where}, {name} {i}", value, truths) for i, value in enumerate(values)]


def _integer(where: str, value: Any, truths: bool) -> int:
    if is_array(value) and value.ndim == 0:
        _of_integers(f"{where}: a tensor in a list of ids is an integer", value, 0, truths=truths)
        return int(value.item())
    if is_whole(value) or (truths and isinstance(value, (bool, np.bool_))):
        return int(value)
    if truths:
        raise PromptError(f"{where} is {shown(value)}, not 0, 1, True or False.")
    raise PromptError(f"{where} is {shown(value)}: a token id is a whole number.")


def _of_integers(rule: str, values: Array, dims: int, *, truths: bool = False) -> None:
    """Raise PromptError where an array is not of `dims` dimensions and whole numbers (or truth values)."""
    if isinstance(values, Tensor):
        real = not (values.is_floating_point() or values.is_complex() or values.is_quantized)
        readable = values.layout == torch.strided and not (values.is_meta or values.is_nested)
        is_bool = values.dtype == torch.bool
    else:
        real, readable, is_bool = values.dtype.kind in "iub", True, values.dtype.kind == "b"
    fits = values.ndim == dims and real and readable and (truths or not is_bool)
    if not fits:
        # A mask is often made with torch.ones: what stands for 0 and 1 is taken.
        if truths and values.ndim == dims and readable and _only_0_and_1(values):
            return
        raise PromptError(f"{rule}, not {list(values.shape)} {values.dtype}.")


def _only_0_and_1(values: Array) -> bool:
    try:
        return all(value in (0, 1) for value in values.tolist())
    except (TypeError, ValueError, RuntimeError):
        return False


def _refuse_padding(name: str, rows: list[list[int]], pad: int) -> None:
    left = [_leading(row, pad) for row in rows]
    right = [_leading(row[::-1], pad) for row in rows]
    for edges in (left, right):
        # One id that all rows share is a token that begins or ends every text.
        if max(edges) > 1 or len(set(edges)) > 1:
            place = edges.index(max(edges))
            raise PromptError(
                f"{name} {place} begins or ends with the padding id {pad}: give attention_mask, with 1 where "
                "it is text."
            )


def _leading(row: list[int], value: int) -> int:
    return next((i for i, token in enumerate(row) if token != value), len(row))
