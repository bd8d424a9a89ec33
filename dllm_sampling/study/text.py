"""Names, prompts and answers as text in a report: shown as they are, never obeyed.

Whatever a study names may hold anything: terminal escapes, HTML, Markdown, TeX, formulas. Each place that
shows it has one function here.
"""

from __future__ import annotations

import re

from dllm_sampling.errors import visible

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_BREAKS = re.compile(f"[{_LINE_ENDS}\t\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&!]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.|@")
# What begins a heading, a list or a rule; the number of a list keeps its digits.
_START = re.compile(r"^(\d*)(?=(?:#{1,6}|[-+]|=+|-{2,}|[.)])(?:\s|$))")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}", "-": "-{}", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


def one_line(text: str) -> str:
    """The text with control characters, line ends and tabs as escapes: for tables and logs."""
    return visible(text, one_line=True)


def unbroken(text: str) -> str:
    """The text with line ends and tabs alone as escapes: a cell of a table in a pipe."""
    return _BREAKS.sub(_escape, text)


def shortened(text: str, width: int) -> str:
    """`one_line`, its middle left out where it is wider than a plot or a progress bar can show."""
    text = one_line(text)
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def markdown(text: str) -> str:
    """One line of Markdown that reads as the text: what Markdown or HTML would obey is escaped."""
    return _START.sub(r"\1\\", _MARKDOWN.sub(lambda match: "\\" + match[0], one_line(text)))


def latex(text: str) -> str:
    """One line of LaTeX that prints the text."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def csv_cell(text: str) -> str:
    """The text as a spreadsheet shows it: one that begins like a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def storable(text: object) -> str:
    """A prompt or an answer as UTF-8 can hold it: half a surrogate pair stands as its escape."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _escape(match: re.Match[str]) -> str:
    # As Python writes it: \n, \x1b, \u202e.
    return match[0].encode("unicode_escape").decode()
