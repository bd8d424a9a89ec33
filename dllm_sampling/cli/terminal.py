"""Text that others wrote, on a terminal: shown, never obeyed."""

from __future__ import annotations

import re
from typing import TextIO

# C0, DEL, C1, and marks that turn the direction of reading; line ends (\n) and tabs stay.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shown(text: str, stream: TextIO) -> str:
    """`text` as it may be written to `stream`.

    On a terminal control characters stand as escapes such as `\\x1b`. In a pipe or a file the text is left
    as it is.
    """
    if not stream.isatty():
        return text
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
