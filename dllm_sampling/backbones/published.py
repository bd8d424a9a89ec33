"""Reading what others published: JSON files, and the keys of a config.json.

Every key is honoured by a family, known to be harmless, or refused by name. Whatever stands in a file, a
CheckpointError says which file and which key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dllm_sampling.errors import CheckpointError, shown

# Far beyond any size of a model; larger numbers would overflow before anything could be compared.
_LARGEST_SIZE = 2**31
_LARGEST_FILE = 512 * 2**20


def read_text(folder: Path, name: str) -> str | None:
    """The text of a folder's file; None where there is none. CheckpointError where it cannot be read."""
    path = folder / name
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise CheckpointError(f"{name} is no file.")
        if path.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(f"{name} is larger than {_LARGEST_FILE >> 20} MiB.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name} is not text in UTF-8: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise CheckpointError(f"{name} is a pointer of Git LFS: fetch the file itself with `git lfs pull`.")
    return text


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The object in a folder's JSON file; None where there is no such file."""
    text = read_text(folder, name)
    if text is None:
        return None
    if not text.strip():
        raise CheckpointError(f"{name} is empty.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} holds no object.")
    return found


# Keys ----------------------------------------------------------------------------------------------

# What transformers writes into every config, what it once kept there for generation, and what tools note:
# none of it changes what a model computes.
HARMLESS = frozenset({
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "cls_token_id", "decoder_start_token_id", "dtype", "finetuning_task", "hidden_dropout", "id2label",
    "initializer_range", "keys_to_ignore_at_inference", "label2id", "language", "license", "model_type",
    "num_labels", "output_attentions", "output_hidden_states", "output_scores", "prefix", "problem_type",
    "return_dict", "return_dict_in_generate", "sep_token_id", "task_specific_params", "tf_legacy_loss",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache", "attention_dropout", "gradient_checkpointing",
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "remove_invalid_values",
    "repetition_penalty", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip


def refused(key: str, value: Any, why: str) -> CheckpointError:
    """The error for a value of a key."""
    return CheckpointError(f"config.json says {key}={shown(value)}; {why}.")


def refuse_unknown(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a config with a key that is neither known nor harmless; one that is off or empty is harmless."""
    if config.get("quantization_config") or config.get("compression_config"):
        key = "quantization_config" if config.get("quantization_config") else "compression_config"
        why = "it was quantised before it was saved, and is not read: load the original, with quantization="
        raise refused(key, config[key], why)
    for key, value in config.items():
        off = value is None or value is False or (isinstance(value, (str, list, dict)) and not value)
        if not (off or value == 0 or key in known or key in HARMLESS or key.startswith("_")):
            raise refused(
                key, value, "nothing here computes that, and no family knows the key to be harmless"
            )


def of_architecture(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a config whose `architectures` are those of another model."""
    named = config.get("architectures")
    if named is None or named == []:
        return
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise refused("architectures", named, "it is a list of names")
    if not set(named) & set(known):
        raise refused("architectures", named, f"that is another model; known here: {', '.join(known)}")


def size(config: Mapping[str, Any], key: str) -> int:
    """A whole number above 0."""
    value = config.get(key)
    if value is None:
        raise CheckpointError(f"config.json has no {key!r}.")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST_SIZE:
        raise refused(key, value, "it is a whole number above 0")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number above 0."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise CheckpointError(f"config.json has no {key!r}.")
        return default
    return _positive(key, value)


def _positive(key: str, value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not 0 < value < 1e30 or not math.isfinite(value):
        raise refused(key, value, "it is a number above 0")
    found: float = value
    return found


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise refused(key, value, "it is true or false")
    return value


def only(config: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuse a value that no stock class computes; the first of those allowed is named."""
    value = config.get(key)
    if not any(value is each or (type(value) is type(each) and value == each) for each in allowed):
        raise refused(key, value, f"which no stock transformers class computes; supported: {allowed[0]!r}")


def heads(config: Mapping[str, Any], width: str, queries: str) -> int:
    """The number of heads; they divide the width into even parts, as rotary embeddings need."""
    whole, count = size(config, width), size(config, queries)
    if whole % (2 * count):
        raise refused(queries, count, f"it does not divide {width}={whole} into heads of even size")
    return count


def kv_heads(config: Mapping[str, Any], key: str, count: int) -> int:
    """The number of heads of keys and values; by default that of queries."""
    if config.get(key) is None:
        return count
    found = size(config, key)
    if count % found:
        raise refused(key, found, f"it does not divide the {count} heads of the queries")
    return found


def rope_theta(config: Mapping[str, Any]) -> float:
    """The base of the rotary embedding, from wherever transformers 4 or 5 wrote it; scaling is refused.

    What stands inside `rope_scaling` or `rope_parameters` goes before a `rope_theta` beside them, and the
    first of the two before the second, as in transformers.
    """
    found = None
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is None or value == {}:
            continue
        if not isinstance(value, dict):
            raise refused(key, value, "it is an object")
        inner = value
        if set(value) == {"full_attention"} and isinstance(value["full_attention"], dict):
            inner = value[
                "full_attention"
            ]  # as transformers 5 writes it for models of several kinds of layers
        kind = inner.get("rope_type", inner.get("type"))
        plain = kind == "default" or (kind is None and set(inner) <= {"rope_theta", "rope_type", "type"})
        if not plain:
            raise refused(key, value, "rotary scaling is not supported, only the type 'default'")
        if inner.get("partial_rotary_factor") not in (None, 1):
            raise refused(key, value, "a partial rotary embedding is not supported")
        if inner.get("rope_theta") is not None:
            found = _positive(f"{key}.rope_theta", inner["rope_theta"])
    return number(config, "rope_theta", found) if found is None else found


def rope_keys() -> set[str]:
    """The keys that `rope_theta` reads."""
    return {"rope_parameters", "rope_scaling", "rope_theta"}
