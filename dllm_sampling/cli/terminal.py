"""Where everything that the command line prints goes through: text is shown to a terminal, never obeyed.

What a model writes, the names of files, models and plugins and the values of options are not ours. A
terminal obeys the control characters in them: it clears itself, sets its title, hides lines. So on a
terminal each is written as Python writes it in a string (`\\x1b`), and in a pipe or a file, which obey
nothing, text stays as it is.

Two things see to it, whoever prints: `guard` puts `print` and everything else that writes to the standard
streams behind `shown`, and `Screen` does the same for what rich draws, whose own control codes must pass.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# All control characters but newline and tab; what changes the direction of a line or separates lines
# without being seen; halves of surrogate pairs, which cannot be written at all.
_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_COMMANDS_AND_BREAKS = re.compile(rf"{_COMMANDS.pattern}|[\n\t]")
# How a progress bar of tqdm, which libraries use, moves before it writes.
_MOVES = re.compile(r"(?:[\n\r]|\x1b\[A)*\Z|\r?")


def shown(text: str, stream: IO[str], *, one_line: bool = False) -> str:
    """`text` as it may be written to `stream`: where that is a terminal, nothing in it is a command.

    one_line: newlines and tabs are written out too.
    """
    return visible(text, one_line=one_line) if is_terminal(stream) else text


def visible(text: str, *, one_line: bool = False) -> str:
    """`text` with every control character as Python writes it in a string."""
    pattern = _COMMANDS_AND_BREAKS if one_line else _COMMANDS
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def is_terminal(stream: IO[str]) -> bool:
    """Whether somebody's terminal is behind a stream; a closed one is none."""
    try:
        return stream.isatty()
    except ValueError:
        return False


class Screen(Console):
    """A console of rich that prints text as it stands, without markup, and none of it as a command."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(
            stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    @property
    def file(self) -> IO[str]:
        """The stream itself: its guard would not let rich's own codes pass."""
        stream = super().file
        return stream.plain if isinstance(stream, _Guarded) else stream

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **options: Any) -> Text:
        """Before a string is measured and broken into lines."""
        return super().render_str(shown(text, self.file), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Whatever else is drawn: only rich's own control segments pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text, self.file))


class _Guarded(io.TextIOWrapper):
    """A standard stream that is a terminal, behind `shown`."""

    plain: TextIO  # the stream itself
    moves = False

    def write(self, text: str, /) -> int:
        """Write; the leading movements of a progress bar pass on standard error."""
        moves = _MOVES.match(text) if self.moves else None
        passed = moves.end() if moves else 0
        super().write(text[:passed] + visible(text[passed:]))
        return len(text)


def guard() -> None:
    """Let nothing reach a terminal through `sys.stdout` and `sys.stderr` as a command, from here on.

    Besides, characters that a stream cannot encode are escaped instead of ending the program.
    """
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)
    if isinstance(sys.stderr, _Guarded):
        sys.stderr.moves = True


def _guarded(stream: TextIO) -> TextIO:
    # Neither a closed standard stream, which is None, nor one of a test's.
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _Guarded):
        return stream
    stream.reconfigure(errors="backslashreplace")
    if not is_terminal(stream):
        return stream
    guarded = _Guarded(
        stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=True, write_through=True
    )
    guarded.plain = stream
    return guarded
