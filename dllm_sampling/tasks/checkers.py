"""What counts as a right answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

# A checker says whether a text gives the answer; `option` is its pattern or its letters.
Checker = Callable[[str, str, str], bool]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def exact(text: str, answer: str, option: str) -> bool:
    """The text is the answer, spaces at both ends aside."""
    return text.strip() == answer.strip()


def regex(text: str, answer: str, option: str) -> bool:
    """The last match of the pattern is the answer: its first group, or all of it where it has none."""
    found = [match[1] if match.re.groups else match[0] for match in re.finditer(option, text)]
    return bool(found) and found[-1] is not None and found[-1].strip() == answer.strip()


def last_number(text: str, answer: str, option: str) -> bool:
    """The last number of the text equals the last number of the answer; thousands may have commas."""
    wanted, found = _last_number(answer), _last_number(text)
    return wanted is not None and wanted == found


def multiple_choice(text: str, answer: str, option: str) -> bool:
    """The letter that the text names is the answer's.

    The letter behind the last "answer is" or "answer:", else the first that stands alone, in brackets or
    not. Only capital letters are read, so that the article "a" is none.
    """
    letters = f"[{re.escape(option)}]"
    named = re.findall(rf"(?i:answer(?:\s+is)?)\s*:?\s*\(?({letters})\b", text)
    alone = re.findall(rf"(?<![\w'])\(?({letters})\)?(?![\w'])", text)
    found = named[-1] if named else alone[0] if alone else None
    return found is not None and found == answer.strip().strip("()")


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


CHECKERS: dict[str, Checker] = {
    "exact": exact,
    "regex": regex,
    "last_number": last_number,
    "multiple_choice": multiple_choice,
}
