"""The progress of `compare` on a terminal: rich's own codes move the bar, and no code of anybody else's passes."""

from __future__ import annotations

import ast
import logging
import os
import pty
import sys
from pathlib import Path

from dllm_sampling.cli import compare, terminal
from dllm_sampling.study import Progress
from dllm_sampling.study.folder import logger

HOSTILE = "a\x1b]0;PWN\x07\x1b[2J\x9b2J\u202ez"
SEEN = r"a\x1b]0;PWN\x07\x1b[2J\x9b2J\u202ez"


def received_from(function):
    """What a terminal receives from a forked process that calls `function` with its streams on it."""
    child, ours = pty.fork()
    if child == 0:
        try:
            os.environ["TERM"] = "xterm-256color"
            sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115
            terminal.guard()
            compare._err.__init__(stderr=True)  # as if it were made here: it looks at its stream once
            function()
            sys.stderr.flush()
        finally:
            os._exit(0)
    received = b""
    try:
        while data := os.read(ours, 65536):
            received += data
    except OSError:  # the other side is closed
        pass
    os.waitpid(child, 0)
    os.close(ours)
    return received.decode()


def progress():
    with compare._shown(quiet=False) as watch:
        watch(Progress(batches=4, cells=1, batches_done=2, doing=f"{HOSTILE} [/red]"))
        logger.log(logging.WARNING, "cell %s failed", HOSTILE)
        sys.stderr.write(f"library: {HOSTILE}\n")  # rich takes the stream while its bar stands


def test_the_bar_moves_and_what_stands_in_it_does_not():
    received = received_from(progress)
    assert "\x1b[?25l" in received  # the cursor is hidden while the bar stands
    assert "2/4" in received
    assert f"{SEEN} [/red]" in received
    assert f"warning: cell {SEEN} failed" in received
    for command in ("\x1b]0", "\x1b[2J", "\x9b", "\u202e", r"\x1b[?25", r"\x1b[38"):
        assert command not in received, received


def test_every_console_of_the_command_line_is_a_screen():
    """Behind the guard the codes of another console would be written out as text."""
    for file in Path(terminal.__file__).parent.glob("*.py"):
        names = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        assert not names & {"Console", "rich.console.Console", "console.Console"}, file
