"""A folder's tokenizer, in a stock class of transformers.

The files are checked one by one, so that an error names the right one. What is read by transformers then is
a copy that holds nothing else: no code, no names of code, no paths.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dllm_sampling.backbones.published import read_json, read_text
from dllm_sampling.errors import CheckpointError

_JSON = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_TEXT = ("merges.txt", "chat_template.jinja")
_TEMPLATES = "additional_chat_templates"
# Settings of tokenizer_config.json that name code or files. The files of a tokenizer have fixed names.
_DROPPED = {
    "auto_map", "fast_tokenizer_files", "from_slow", "gguf_file", "init_inputs", "is_local",
    "local_files_only", "merges_file", "name_or_path", "processor_class", "spm_file", "tokenizer_file",
    "tokenizer_object", "trust_remote_code", "vocab_file",
}  # fmt: skip


def read_tokenizer(
    folder: Path, fallback: type[PreTrainedTokenizerBase] | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder; None where it holds none.

    fallback: the class for a folder with vocab.json and no tokenizer.json whose own class is no stock one.
    Raises CheckpointError, which names the file, for one that is missing or damaged.
    """
    files = {name: read_json(folder, name) for name in _JSON}
    settings, whole, vocabulary = (files[name] for name in _JSON[:3])
    if whole is None and vocabulary is None:
        if settings is None:
            return None
        raise CheckpointError("holds tokenizer_config.json, but neither tokenizer.json nor vocab.json.")
    texts = {name: read_text(folder, name) for name in _TEXT}
    if whole is not None:
        _check_whole(json.dumps(whole))
    else:
        _check_ids("vocab.json", vocabulary or {})
        if texts["merges.txt"] is None:
            raise CheckpointError("holds vocab.json, but no merges.txt.")
    _check_ids("added_tokens.json", files["added_tokens.json"] or {})
    settings = settings or {}
    kind = _stock_class(settings.get("tokenizer_class"), whole is not None, fallback)
    if (folder / _TEMPLATES).is_dir():
        for path in sorted((folder / _TEMPLATES).glob("*.jinja")):
            texts[f"{_TEMPLATES}/{path.name}"] = read_text(folder, f"{_TEMPLATES}/{path.name}")
    files["tokenizer_config.json"] = {
        key: value for key, value in settings.items() if key not in _DROPPED and not key.startswith("_")
    }
    with tempfile.TemporaryDirectory(prefix="dllm-sampling-") as name:
        copy = Path(name)
        (copy / _TEMPLATES).mkdir()
        for each, data in files.items():
            if data is not None:
                texts[each] = json.dumps(data)
        for each, text in texts.items():
            if text is not None:
                (copy / each).write_text(text, encoding="utf-8", newline="")
        tokenizer = _made(kind, copy)
    tokenizer.name_or_path = str(folder)
    tokenizer.init_kwargs.pop("name_or_path", None)
    return tokenizer


def _made(kind: type[PreTrainedTokenizerBase], folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, after it showed that it encodes and decodes."""
    try:
        made = cast(
            PreTrainedTokenizerBase,
            kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        )
        ids = list(made("a 0")["input_ids"])
        made.decode(ids, skip_special_tokens=True)
        made.batch_decode([ids])
        _ = made.get_vocab(), made.get_added_vocab(), made.special_tokens_map, made.all_special_ids
        return made
    except BaseException as error:
        # Rust panics are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).strip().split("\n")[0].replace(str(folder), ".")[:300]
        raise CheckpointError(
            "no tokenizer can be made of tokenizer_config.json and the files beside it: "
            f"{type(error).__name__}: {reason}"
        ) from None


def _check_whole(text: str) -> None:
    try:
        tokenizers.Tokenizer.from_str(text)
        added = json.loads(text).get("added_tokens")
        if not isinstance(added, list):
            raise CheckpointError("tokenizer.json has no list 'added_tokens'.")
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"tokenizer.json is damaged: {str(error)[:200]}") from None


def _check_ids(file: str, vocabulary: dict[str, Any]) -> None:
    for token, value in vocabulary.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise CheckpointError(f"{file} gives {token[:50]!r} the id {str(value)[:50]!r}, which is none.")


def _stock_class(
    name: Any, whole: bool, fallback: type[PreTrainedTokenizerBase] | None
) -> type[PreTrainedTokenizerBase]:
    """The class that transformers has under that name; else the one that reads a whole tokenizer.json."""
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"tokenizer_config.json says tokenizer_class={str(name)[:50]!r}; it is a name.")
    found: type[PreTrainedTokenizerBase] | None = None
    # A tokenizer.json that says LlamaTokenizer is often of another kind: it is taken as it stands.
    if (
        name
        and name.isidentifier()
        and "Tokenizer" in name
        and not (whole and name.startswith("LlamaTokenizer"))
    ):
        for each in (name, name.removesuffix("Fast")):
            try:
                candidate = getattr(transformers, each, None)
            except Exception:  # noqa: BLE001 - a class whose packages are missing is as good as none
                candidate = None
            if isinstance(candidate, type) and issubclass(candidate, PreTrainedTokenizerFast):
                found = candidate
                break
    if whole:
        return found or PreTrainedTokenizerFast
    if found is None or found is PreTrainedTokenizerFast:
        found = fallback
    if found is None:
        raise CheckpointError(
            f"tokenizer_config.json says tokenizer_class={name!r}, which is none of transformers, and "
            "there is no tokenizer.json."
        )
    return found
