"""Text from files: UTF-8, lines that end at a newline alone, and JSON without surprises."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dllm_sampling.errors import DllmSamplingError

_OTHER_ENCODINGS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def read_text(path: Path, error: type[DllmSamplingError]) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises `error` naming file, line and cause."""
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: {cause.strerror or cause}.") from None
    return decoded(data, str(path), error)


def decoded(data: bytes, name: str, error: type[DllmSamplingError]) -> str:
    """Bytes of UTF-8 as text, without a byte order mark. Raises `error` for any other encoding."""
    for encoding, marks in _OTHER_ENCODINGS.items():
        if data.startswith(marks):
            raise error(f"{name}: is written in {encoding}; save it as UTF-8.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        line = data.count(b"\n", 0, cause.start) + 1
        raise error(f"{name}, line {line}: byte 0x{data[cause.start]:02x} is no UTF-8.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(f"{name}, line {line}: holds a NUL character; is it text, in UTF-8?")
    return text.removeprefix("\ufeff")


def lines(text: str) -> Iterator[tuple[int, str]]:
    r"""The lines that are not blank, with their numbers from 1 on.

    A line ends at `\n` or `\r\n`. Whatever else Unicode calls a line break is text, as JSON Lines has it.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def parsed(text: str, where: str, error: type[DllmSamplingError]) -> Any:
    """The value of some JSON. Raises `error` where it is none, or an object has one key twice.

    NaN and Infinity are read, as Python writes them.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise error(f"{where}: an object has the key {key!r} twice.")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise error(f"{where}: not readable as JSON: nested too deeply.") from None
    except ValueError as cause:
        if isinstance(cause, error):
            raise
        raise error(f"{where}: not JSON: {cause}.") from None


def json_lines(text: str, name: str, error: type[DllmSamplingError]) -> Iterator[tuple[int, Any]]:
    """The value of each line that is not blank, with the number of the line."""
    for number, line in lines(text):
        yield number, parsed(line, f"{name}, line {number}", error)
