"""What others wrote is shown to a terminal, never obeyed; in a pipe it stays as it is."""

from __future__ import annotations

import ast
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn

import dllm_sampling
from dllm_sampling.cli import terminal
from dllm_sampling.cli.terminal import Screen, say, say_columns, shown, tell_of

TITLE = "\x1b]0;PWN\x07"
HOSTILE = f"a{TITLE}\x1b[2J\x9b2J\x08\r\u202ez"
SEEN = r"a\x1b]0;PWN\x07\x1b[2J\x9b2J\x08\r\u202ez"
QUESTION = "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"
# What a terminal would do because somebody else's text says so. Rich's own codes are colours, erased
# lines, cursor up and the cursor's hiding.
OBEYED = re.compile("\x1b\\]|\x1b\\[2J|\x9b|[\x08\u202e]|\r(?![\r\n]|\x1b\\[)")
COMMANDS = Path(terminal.__file__).parent


class Terminal(io.StringIO):
    def isatty(self):
        return True


@given(st.text(st.characters() | st.sampled_from(HOSTILE)))
def test_on_a_terminal_no_character_is_a_command_and_in_a_pipe_each_stays(text):
    assert shown(text, io.StringIO()) is text
    seen = shown(text, Terminal())
    assert all(c.isprintable() or c in "\n\t" or c.isspace() or not OBEYED.search(c) for c in seen)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", seen)
    assert shown(seen, Terminal()) == seen
    assert [c for c in seen if c in "\n\t"] == [c for c in text if c in "\n\t"]
    assert "\n" not in shown(text, Terminal(), one_line=True)


def test_a_progress_bar_moves_the_cursor_and_the_text_in_it_does_not(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Progress(TextColumn("{task.description}", markup=False), console=Screen(stderr=True)) as bar:
        bar.add_task(HOSTILE, total=None)
        tell_of("warning", HOSTILE)
    drawn = stream.getvalue()
    assert "\x1b[" in drawn  # rich drew a bar
    assert r"\x1b]0;PWN" in drawn
    assert f"warning: {SEEN}" in drawn
    assert not OBEYED.search(drawn)


def test_a_message_cannot_pass_for_another(monkeypatch, capsys):
    tell_of("error", "no such file: x\nerror: all is well")
    assert capsys.readouterr().err == "error: no such file: x\n  error: all is well\n"
    say_columns([("plugin", "status"), ("日本", "a"), ("b", "c")])
    assert capsys.readouterr().out == "plugin  status\n日本    a\nb       c\n"
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    say_columns([("b\nloaded", "c")])
    assert stream.getvalue() == "b\\nloaded  c\n"
    monkeypatch.setattr(sys, "stdout", None)  # as in a shell's >&-
    say("x")


def test_commands_write_through_the_terminal_module_alone():
    """No print, no console of rich's own, no echo of the parser's."""
    for file in COMMANDS.glob("*.py"):
        if file.name in {"terminal.py", "compare.py"}:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "typer.echo", "Console", "sys.stdout.write"}, (
                    file
                )


# Everything at once, in a real terminal ------------------------------------------------------------------

_EACH = """
import gc, os, sys
from tests.cli_cases import load
from dllm_sampling.cli import main
load()
gc.freeze()
for arguments in map(eval, sys.argv[1:]):
    print(f"<<{arguments[0]}>>", flush=True)
    if os.fork() == 0:
        sys.argv = ["dllm-sampling", *arguments]
        try:
            main()
        except SystemExit:
            os._exit(0)
    os.wait()
"""


def in_a_terminal(*commands):
    """What a terminal receives from some commands, and which of them was running."""
    child, terminal_side = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, "-c", _EACH, *map(repr, commands)])
    received = b""
    while True:
        ready, _, _ = select.select([terminal_side], [], [], 100)
        assert ready, received.decode(errors="replace")
        try:
            data = os.read(terminal_side, 65536)
        except OSError:
            break
        if not data:
            break
        received += data
    os.waitpid(child, 0)
    os.close(terminal_side)
    return received.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory):
    """The bundled model, with terminal commands for the tokens of its sums."""
    folder = tmp_path_factory.mktemp("model") / f"m{TITLE}"
    shutil.copytree(Path(dllm_sampling.__file__).parent / "bundled/word-problems", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for old, new in {"=": "\u011b[2J", "+": "\u011b]0;PWN\u0107"}.items():
        vocabulary[new] = vocabulary.pop(old)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


PLUGIN = '''
"""A plugin."""
from typing import ClassVar
import warnings
from pydantic import Field
from dllm_sampling import UnmaskingPolicy

warnings.warn("hot " + {hostile!r})

class Mine(UnmaskingPolicy):
    __doc__ = "Does " + {hostile!r}
    name: ClassVar[str] = "mine"
    wide: str = Field({hostile!r}, description="Is " + {hostile!r})

    def select(self, state, observation):
        return observation.eligible

def register():
    return [Mine]
'''


def test_hostile_text_in_every_place_is_shown(tmp_path, hostile_model):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "mine.py").write_text(PLUGIN.format(hostile=HOSTILE))
    (plugins / "bad.py").write_text(f"raise ValueError({HOSTILE!r})")
    config = tmp_path / f"{HOSTILE}.yaml"
    config.write_text(json.dumps({HOSTILE: 1}))
    options = ["--gen-length", "32", "--model", str(hostile_model)]
    received = in_a_terminal(
        ["generate", QUESTION, *options],
        ["generate", "--file", HOSTILE],
        ["generate", "x", "--model", f"./{HOSTILE}"],
        ["generate", "x", "--dtype", HOSTILE],
        ["generate", "x", "--device", HOSTILE],
        ["generate", "x", "--unmasking", HOSTILE],
        ["generate", "x", "--set", f"{HOSTILE}=1"],
        ["generate", "x", f"--{HOSTILE}"],
        ["config", "validate", str(config)],
        ["config", HOSTILE],
        ["strategies", "--plugins-dir", str(plugins)],
        ["strategies", "mine", "--plugins-dir", str(plugins)],
        ["plugins", "--plugins-dir", str(plugins)],
        ["new", "transform", HOSTILE],
        ["new", HOSTILE, "x"],
        ["frequencies", HOSTILE, "-o", HOSTILE],
        ["report", HOSTILE],
        ["compare", HOSTILE],
    )
    assert "Traceback" not in received
    found = OBEYED.search(received)
    assert not found, received[max(found.start() - 300, 0) : found.end() + 50]
    parts = re.split(r"<<\w+>>", received)[1:]
    assert len(parts) == 18
    for part in parts:
        assert r"\x1b" in part or r"\u001b" in part, part


def test_a_pipe_keeps_every_byte(tmp_path, hostile_model):
    (tmp_path / "mine.py").write_text(PLUGIN.format(hostile=HOSTILE))
    done = subprocess.run(
        [sys.executable, "-c", _EACH,
         repr(["generate", QUESTION, "--gen-length", "32", "--model", str(hostile_model), "--quiet"]),
         repr(["strategies", "mine", "--plugins-dir", str(tmp_path)]), repr(["compare", HOSTILE])],
        capture_output=True, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    assert f"27{TITLE}5\x1b[2J32" in out
    assert f"Does {HOSTILE}" in out
    assert f"hot {HOSTILE}" in err
    assert "\\x1b" not in out


# Streams that cannot be written --------------------------------------------------------------------------


def shell(command):
    """Exit status and standard error of a shell's command line."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"COMMAND": f"{sys.executable} -m dllm_sampling.cli"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        ("$COMMAND --help | true", (0, 141), ""),
        (
            "$COMMAND --version > /dev/full",
            (2,),
            "error: stdout cannot be written: No space left on device.\n",
        ),
        ("$COMMAND nonsense 2> /dev/full", (2,), ""),
        ("$COMMAND --version >&-", (0,), ""),
        ("$COMMAND nonsense 2>&-", (2,), ""),
        ("LC_ALL=C PYTHONIOENCODING=ascii $COMMAND Zwölf", (2,), "Zw\\xf6lf"),
        ("LC_ALL=C $COMMAND $'\\xff'", (2,), "\\udcff"),
    ],
)
def test_a_stream_that_cannot_be_written_ends_in_one_sentence_at_most(command, status, told):
    code, _, err = shell(command)
    assert code in status
    assert told in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert bool(err) == bool(told)


def test_the_package_of_the_command_is_the_one_that_is_tested():
    assert Path(dllm_sampling.__file__).parent in COMMANDS.parents
