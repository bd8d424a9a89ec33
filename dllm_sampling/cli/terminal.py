r"""Where everything that the command line prints goes through: text is shown to a terminal, never obeyed.

What a model writes, the names of files, models and plugins and the values of options are not ours. A
terminal obeys the control characters in them: it clears itself, sets its title, hides lines. So on a
terminal each is written as Python writes it in a string (`\x1b`), and in a pipe or a file, which obey
nothing, text stays as it is.

Two things see to it, whoever prints: `guard` puts everything that writes to the standard streams behind
`shown`, and `Screen` does the same for the progress bars that rich draws, whose own control codes must pass.
Commands write with `say`, `say_columns`, `tell` and `tell_of`.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dllm_sampling.errors import DllmSamplingError, visible

# How a progress bar of tqdm, which libraries use, moves before it writes.
_MOVES = re.compile(r"(?:[\n\r]|\x1b\[A)*\Z|\r?")


def shown(text: str, stream: IO[str], *, one_line: bool = False) -> str:
    """`text` as it may be written to `stream`: where that is a terminal, nothing in it is a command.

    one_line: newlines and tabs are written out too.
    """
    return visible(text, one_line=one_line) if is_terminal(stream) else text


def is_terminal(stream: IO[str]) -> bool:
    """Whether somebody's terminal is behind a stream; a closed one is none."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def say(text: str = "") -> None:
    """Write a line, or several, to standard output: what the command is asked for."""
    _write(text, sys.stdout)


def say_columns(lines: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output, each line whole; all columns but the last are padded."""
    cells = [[shown(text, sys.stdout, one_line=True) for text in line] for line in lines]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for *first, last in cells:
        padded = [text + " " * (width - cell_len(text)) for text, width in zip(first, widths, strict=False)]
        say("  ".join([*padded, last]))


def tell(text: str) -> None:
    """Write a line, or several, to standard error: everything about the work."""
    _write(text, sys.stderr)


def tell_of(kind: str, message: object) -> None:
    """Tell of an `error` or a `warning`; a message of several lines cannot pass for messages of ours."""
    tell(f"{kind}: " + str(message).replace("\n", "\n  "))


def _write(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # the shell may have closed it
        stream.write(shown(text, stream) + "\n")


class OutputError(DllmSamplingError):
    """A standard stream cannot be written: its disk is full, or its reader has gone (`| head`)."""

    def __init__(self, stream: TextIO, error: OSError) -> None:
        super().__init__(f"{str(stream.name).strip('<>')} cannot be written: {error.strerror or error}.")
        self.reader_has_gone = isinstance(error, BrokenPipeError)


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
    """A standard stream, behind `shown`."""

    plain: TextIO  # the stream itself
    moves = False

    def write(self, text: str, /) -> int:
        """Write; the leading movements of a progress bar pass on standard error."""
        moves = _MOVES.match(text) if self.moves else None
        passed = moves.end() if moves else 0
        try:
            super().write(text[:passed] + shown(text[passed:], self))
        except OSError as error:
            raise OutputError(self, error) from None
        return len(text)

    def flush(self) -> None:
        """Hand over what is buffered."""
        try:
            super().flush()
        except OSError as error:
            raise OutputError(self, error) from None


def guard() -> None:
    """Let nothing reach a terminal through `sys.stdout` and `sys.stderr` as a command, from here on.

    Besides, characters that a stream cannot encode are escaped instead of ending the program, and what
    cannot be written is an OutputError.
    """
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)
    if isinstance(sys.stderr, _Guarded):
        sys.stderr.moves = True


def _guarded(stream: TextIO) -> TextIO:
    # Neither a closed standard stream, which is None, nor one of a test's.
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, _Guarded):
        return stream
    stream.flush()
    guarded = _Guarded(
        stream.buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or is_terminal(stream),
        write_through=stream.write_through,
    )
    guarded.plain = stream
    return guarded


def flush() -> None:
    """Hand over what the standard streams still hold. Raises OutputError where that fails."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
