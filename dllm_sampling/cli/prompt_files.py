"""Prompts from the arguments, a file or standard input."""

from __future__ import annotations

import csv
import difflib
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dllm_sampling.engine import prompts
from dllm_sampling.errors import PromptError, shown
from dllm_sampling.inputs.text_files import decoded, json_lines, lines, parsed, read_text

# Where the prompt of a JSON object stands.
_KEYS = ("prompt", "question", "messages")
_TAKEN = (
    "one prompt a line (.txt), JSON Lines (.jsonl) with a prompt, question or messages in each object, or a "
    "list of such objects or of texts (.json)"
)
# Endings of files that hold no prompts as they stand; what has none of them is text.
_STRUCTURED = frozenset(
    (
        ".arrow", ".avro", ".bin", ".bz2", ".csv", ".db", ".doc", ".docx", ".feather", ".gz", ".h5", ".hdf5",
        ".htm", ".html", ".ipynb", ".json5", ".msgpack", ".npy", ".npz", ".ods", ".orc", ".parquet", ".pdf",
        ".pickle", ".pkl", ".pt", ".pth", ".safetensors", ".sqlite", ".tar", ".toml", ".tsv", ".xls", ".xlsx",
        ".xml", ".xz", ".yaml", ".yml", ".zip", ".zst",
    )
)  # fmt: skip


def read_prompts(arguments: Sequence[str], file: Path | None) -> list[Any]:
    """Prompts from the arguments, else from a file, else from standard input; see `prompts.checked`.

    A file is UTF-8. Its ending says what it holds; without one that says so, and on standard input, text
    that is evidently JSON is read as such, and what is evidently a table is refused.
    Raises PromptError naming the file and the line.
    """
    if arguments and file is not None:
        raise PromptError("give prompts as arguments or with --file, not both.")
    if arguments:
        return [_argument(argument, i) for i, argument in enumerate(arguments)]
    if file is not None:
        return _from_file(file)
    if sys.stdin is None or sys.stdin.isatty():
        raise PromptError("no prompt: give it as an argument, with --file, or on standard input.")
    return _guessed(decoded(sys.stdin.buffer.read(), "standard input", PromptError), "standard input")


def _argument(argument: str, index: int) -> str:
    """An argument is a prompt, whatever it says, unless it is evidently meant to be read from elsewhere."""
    if Path(argument).suffix and not any(c.isspace() for c in argument) and _is_file(argument):
        raise PromptError(f"prompt {index} is {argument!r}, a file: give it with --file.")
    if argument.lstrip().startswith("{"):
        try:
            value = parsed(argument, "", PromptError)
        except PromptError:
            return argument  # text
        if any(key in value for key in _KEYS):
            raise PromptError(
                f"prompt {index} is a JSON object: give it with --file (.jsonl) or on standard input."
            )
    return argument


def _is_file(name: str) -> bool:
    with suppress(OSError, ValueError):  # too long for a path, or none
        return Path(name).is_file()
    return False


def _from_file(file: Path) -> list[Any]:
    ending = file.suffix.lower()
    if ending in _STRUCTURED:
        raise PromptError(f"{file}: prompts cannot be read from {ending}; a file holds {_TAKEN}.")
    text, name = read_text(file, PromptError), str(file)
    if ending in (".jsonl", ".ndjson"):
        return _from_json_lines(text, name)
    return _from_json(text, name) if ending == ".json" else _guessed(text, name)


def _guessed(text: str, name: str) -> list[Any]:
    """One prompt a line, unless the text shows itself to be JSON or a table."""
    start = text.strip()
    first = start.split("\n", 1)[0]
    if _is_json(start):
        return _from_json(text, name)
    if (first.startswith("{") and _is_json(first)) or all(_is_json(line) for _, line in lines(text)):
        return _from_json_lines(text, name)
    if first.rstrip() in ("{", "[") or first.startswith(('{"', '[{"', '["')):
        return _from_json(text, name)  # there is a mistake in it, and the error says where
    found = list(lines(text))
    _refuse_table([line for _, line in found], name)
    return _some([prompts.checked(line, f"{name}, line {number}") for number, line in found], name)


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    with suppress(PromptError):
        parsed(text, "", PromptError)
        return True
    return False


def _from_json_lines(text: str, name: str) -> list[Any]:
    rows = json_lines(text, name, PromptError)
    return _some([_prompt_of(row, f"{name}, line {number}") for number, row in rows], name)


def _from_json(text: str, name: str) -> list[Any]:
    if not text.strip():
        return _some([], name)
    value = parsed(text, name, PromptError)
    if isinstance(value, dict):
        return [_prompt_of(value, name)]
    if not isinstance(value, list):
        raise PromptError(f"{name}: holds {shown(value)}, not a list of prompts.")
    return _some([_prompt_of(row, f"{name}, entry {i}", bare=True) for i, row in enumerate(value)], name)


def _some(found: list[Any], name: str) -> list[Any]:
    if not found:
        raise PromptError(f"no prompt: the input is empty ({name}).")
    return found


def _prompt_of(row: Any, where: str, *, bare: bool = False) -> Any:
    """The prompt of a JSON object, whose other keys are its owner's data. `bare`: or a prompt itself."""
    if bare and isinstance(row, (str, list)):
        return prompts.checked(row, where)
    keys = f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}"
    if not isinstance(row, dict):
        raise PromptError(f"{where}: is {shown(row)}, not a JSON object with {keys}.")
    given = [key for key in _KEYS if key in row]
    if len(given) > 1:
        raise PromptError(f"{where}: has {' and '.join(given)}; give one of them.")
    if not given:
        if "role" in row:
            raise PromptError(f'{where}: is a message; a chat is {{"messages": [...]}}.')
        for key in row:
            if near := difflib.get_close_matches(key.strip().lower(), _KEYS, n=1):
                raise PromptError(f"{where}: has no {keys}. Did you mean {near[0]!r} by {shown(key)}?")
        raise PromptError(f'{where}: a JSON object without {keys}; text that is JSON is {{"prompt": "..."}}.')
    value, place = row[given[0]], f"{where}: {given[0]}"
    if given[0] == "messages" and not isinstance(value, list):
        raise PromptError(f"{place} must be a list of messages, got {shown(value)}.")
    return prompts.checked(value, place)


def _refuse_table(found: Sequence[str], name: str) -> None:
    """Raise PromptError for what is evidently CSV: a line of names, and as many fields in every line."""
    if len(found) < 2:
        return
    for separator in (",", "\t", ";"):
        try:
            rows = list(csv.reader(found, delimiter=separator))
        except csv.Error:
            continue
        header = [cell.strip() for cell in rows[0]]
        if len(header) > 1 and all(cell.isidentifier() for cell in header):
            same = all(len(row) == len(header) for row in rows)
            if same or any(cell.lower() in _KEYS for cell in header):
                raise PromptError(f"{name}: is a table ({', '.join(header)}), not prompts; give {_TAKEN}.")
