"""What a plugin raises is shown with its name and its own last lines, wherever its code is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dllm_sampling import CheckpointError, ConfigurationError, PluginError, load_model
from dllm_sampling.plugins.blame import Blame
from dllm_sampling.study import Study

PLUGIN = '''
import json
from typing import ClassVar

from pydantic import Field, model_validator

from dllm_sampling import Backbone, Example, Observer, Task, UnmaskingPolicy, Wrapper


def helper(number):
    return [][number]


class Fails(UnmaskingPolicy):
    """Source: ours."""

    name: ClassVar[str] = "fails"

    def select(self, state, observation):
        return self._chosen(observation)

    def _chosen(self, observation):
        return helper(3)


class Breaks(Observer):
    """Source: ours."""

    name: ClassVar[str] = "breaks"

    @model_validator(mode="after")
    def _check(self):
        raise KeyError("no such thing")


class Empty(Task):
    name: ClassVar[str] = "empty"
    gen_length: int = Field(8)
    broken: str = "examples"

    def examples(self):
        if self.broken == "examples":
            return helper(0)
        return [Example("1 + 1", "2")]

    def is_correct(self, text, example):
        return helper(1)


class Family(Backbone):
    name: ClassVar[str] = "mine"

    @classmethod
    def matches(cls, config):
        return config["there is none"]

    @classmethod
    def stock(cls, config):
        raise NotImplementedError


def register():
    return [Fails, Breaks, Empty]
'''


def line_of(text: str) -> int:
    return PLUGIN.splitlines().index(text) + 1


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGIN)
    monkeypatch.setenv("DLLM_SAMPLING_PLUGINS_DIR", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def generate(*more):
    command = [
        sys.executable,
        "-m",
        "dllm_sampling.cli",
        "generate",
        "Mia has 27 pens.",
        "--gen-length",
        "8",
        *more,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def study(task):
    return Study.of({"name": "n", "baseline": "a", "samplers": [{"name": "a"}], "tasks": [task]})


def test_the_command_line_shows_the_plugins_own_lines_and_no_traceback(plugins):
    done = generate("--unmasking", "fails")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    told = done.stderr[done.stderr.index("error: Fails.select") :].rstrip("\n").split("\n")
    assert told == [
        "error: Fails.select (unmasking) failed: IndexError: list index out of range",
        f"  plugins/mine.py, line {line_of('        return self._chosen(observation)')}, in select: "
        "return self._chosen(observation)",
        f"  plugins/mine.py, line {line_of('        return helper(3)')}, in _chosen: return helper(3)",
        f"  plugins/mine.py, line {line_of('    return [][number]')}, in helper: return [][number]",
    ]


def test_a_validator_that_fails_is_shown_with_its_line(plugins):
    from dllm_sampling import Observer
    from dllm_sampling.plugins.nested import resolve

    with pytest.raises(PluginError, match=r"'breaks' of plugin mine .* cannot be built: KeyError") as caught:
        resolve(Observer, "breaks")
    assert 'in _check: raise KeyError("no such thing")' in str(caught.value)


def test_examples_that_fail_are_shown_with_their_lines(plugins):
    with pytest.raises(
        ConfigurationError, match=r"task 'empty': Empty\.examples failed: IndexError"
    ) as caught:
        study("empty").run("results")
    assert "mine.py, line" in str(caught.value)
    assert "in examples: return helper(0)" in str(caught.value)


def test_a_checker_that_fails_is_shown_with_its_lines(plugins, caplog):
    study({"name": "empty", "broken": "checker"}).run("results")
    assert "Empty.is_correct failed: IndexError: list index out of range" in caplog.text
    assert "in is_correct: return helper(1)" in caplog.text


@pytest.mark.parametrize("method", ["matches", "stock", "load_tokenizer", "finish"])
def test_a_family_that_fails_is_named_with_its_line(method, monkeypatch):
    from dllm_sampling.backbones.llada import LLaDA

    def broken(cls, given):
        return 1 / 0

    monkeypatch.setattr(LLaDA, method, classmethod(broken))
    with pytest.raises(
        CheckpointError, match=rf"model family 'llada': {method} failed: ZeroDivisionError"
    ) as caught:
        load_model()
    assert "in broken: return 1 / 0" in str(caught.value)


def test_lines_of_libraries_are_left_out():
    def fails():
        json.loads("{")

    with pytest.raises(PluginError) as caught, Blame("mine", fails):
        fails()
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("mine failed: JSONDecodeError: ")
    assert all(Path(__file__).name in line for line in lines)
    assert lines[-1].endswith('in fails: json.loads("{")')


def test_what_says_itself_what_to_change_is_left_as_it_is():
    for error in (ConfigurationError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, Blame("mine", textwrap.dedent):
            raise error
        assert caught.value is error
