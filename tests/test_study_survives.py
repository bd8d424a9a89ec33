"""A study survives its input: what cannot be decoded, scored or loaded takes its own cells with it alone."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import dllm_sampling
from dllm_sampling import ConfigurationError, Example, Task, UnmaskingPolicy
from dllm_sampling.study import Results, Study, report
from tests.study_files import finished, written

QUESTION = "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"
SAMPLERS = [{"name": "a", "unmasking": {"name": "fixed_k", "k": 4}}, {"name": "b", "cache": "dual"}]


class Given(Task):
    """The prompts it is given."""

    name: ClassVar[str] = "given"
    prompts: list = []

    def examples(self):
        return [Example(prompt, "24") for prompt in self.prompts]

    def is_correct(self, text, example):
        return example.answer in text


def study(tasks, **more):
    return Study.of({"name": "n", "baseline": "a", "samplers": SAMPLERS, "tasks": tasks, **more})


def with_tasks(*tasks):
    """A study of instances: a file names classes that plugins offer, and these are the test's own."""
    made = study(["word_problems"])
    entries = tuple(
        made.config.tasks[0].model_copy(update={"name": label, "task": task}) for label, task in tasks
    )
    return Study(made.config.model_copy(update={"tasks": entries}))


BAD = {
    "too long": "Mia has 27 pens. " * 200,
    "empty": "",
    "blank": " \n",
    "half a surrogate pair": "Mia \ud83d has",
    "no prompt": None,
    "a number": 7,
    "bytes": b"Mia",
    "a message with half a pair": [{"role": "user", "content": "\udc00"}],
    "ids outside the vocabulary": [10**9],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_prompt_that_cannot_be_decoded_fails_its_own_task_and_is_named(tmp_path, bad):
    made = with_tasks(
        ("bad", Given(prompts=[QUESTION, bad], gen_length=4)),
        ("good", Given(prompts=[QUESTION], gen_length=4)),
    )
    results = made.run(tmp_path)
    assert [(row.task, row.sampler) for row in results.rows] == [("good", "a"), ("good", "b")]
    assert len(results.failed) == 2
    for message in results.failed.values():
        assert "task 'bad', row 2 of 2: " in message
    report.write(results)
    for name in ("report.md", "report.html"):
        assert "row 2 of 2" in (tmp_path / name).read_text(), name
    # The same again: nothing is forgotten, nothing runs twice.
    assert len(made.run(tmp_path).failed) == 2


def test_the_command_says_what_failed_and_reports_the_rest(tmp_path):
    for label, prompts in (("bad", [QUESTION, ""]), ("good", [QUESTION])):
        lines = [json.dumps({"q": prompt, "a": "24"}) + "\n" for prompt in prompts]
        (tmp_path / f"{label}.jsonl").write_text("".join(lines))
    tasks = [
        {"name": "file", "label": label, "path": f"{label}.jsonl", "prompt": "{{ q }}", "answer": "{{ a }}"}
        for label in ("bad", "good")
    ]
    path = written(tmp_path, tasks=tasks, gen_length=4, samplers=SAMPLERS, baseline="a")
    code, out, err = finished("compare", path, "--output", tmp_path / "out")
    assert code == 1
    assert (
        "failed: bundled / bad / a / seed 0: task 'bad', row 2 of 2: PromptError: the prompt is empty." in err
    )
    assert "bundled, good: 1 prompts" in out
    assert "## Not finished" in (tmp_path / "out" / "report.md").read_text()
    code, out, err = finished("compare", path, "--dry-run")
    assert code == 1
    assert "cannot be run" in out
    assert "row 2 of 2" in err


def test_where_all_fails_there_is_still_a_report(tmp_path):
    results = with_tasks(("bad", Given(prompts=[""]))).run(tmp_path)
    assert not results.tables
    report.write(results)
    assert "row 1 of 1" in (tmp_path / "report.html").read_text()


class Breaks(Task):
    """Its checker breaks on the second prompt, in a way of its own."""

    name: ClassVar[str] = "breaks"
    way: str

    def examples(self):
        return [Example(QUESTION, str(i)) for i in range(2)]

    def is_correct(self, text, example):
        if example.answer == "1":
            if self.way == "exit":
                sys.exit("bye")
            if self.way == "skip":
                pytest.skip("in a checker")
            raise ZeroDivisionError("checker")
        return True


@pytest.mark.parametrize("way", ["raise", "exit", "skip"])
def test_a_checker_that_breaks_fails_its_own_task(tmp_path, way):
    good = ("good", Given(prompts=[QUESTION], gen_length=4))
    results = with_tasks(("bad", Breaks(way=way, gen_length=4)), good).run(tmp_path)
    assert {row.task for row in results.rows} == {"good"}
    assert all("task 'bad', row 2 of 2, the checker: " in message for message in results.failed.values())


class Exits(UnmaskingPolicy):
    """Ends the program."""

    name: ClassVar[str] = "exits"

    def select(self, state, observation):
        sys.exit(3)


def test_a_policy_that_exits_fails_its_own_cell(tmp_path):
    samplers = [*SAMPLERS, {"name": "exits", "unmasking": Exits()}]
    tasks = [{"name": "word_problems", "limit": 1, "gen_length": 4}]
    results = study(tasks, samplers=samplers).run(tmp_path)
    assert [row.sampler for row in results.rows] == ["a", "b"]
    (message,) = results.failed.values()
    assert message.startswith("bundled / word_problems / exits / seed 0: ")
    assert "SystemExit: 3" in message


def test_a_model_that_cannot_be_loaded_fails_its_own_cells(tmp_path):
    bundled = Path(dllm_sampling.__file__).parent / "bundled" / "word-problems"
    shutil.copytree(bundled, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    models = [{"name": "cut", "source": str(tmp_path / "cut")}, {"name": "whole"}]
    tasks = [{"name": "word_problems", "limit": 1, "gen_length": 4}]
    results = study(tasks, models=models).run(tmp_path / "out")
    assert {row.model for row in results.rows} == {"whole"}
    assert len(results.failed) == 2
    assert all(message.startswith("cut / ") for message in results.failed.values())


class Unreadable(Task):
    """Its examples are not there."""

    name: ClassVar[str] = "unreadable"
    way: str = ""

    def examples(self):
        if self.way == "exit":
            sys.exit(1)
        if self.way == "wrong":
            return ["a string"]
        if self.way == "data":
            return [Example("a", "b", {1: object(), "x": {}})]
        return [] if self.way == "none" else open("/no/such/file").read()

    def is_correct(self, text, example):
        return True


@pytest.mark.parametrize("way", ["", "exit", "wrong", "none", "data"])
def test_examples_that_cannot_be_read_are_told_with_the_task_before_anything_runs(tmp_path, way):
    good = ("good", Given(prompts=[QUESTION]))
    with pytest.raises(ConfigurationError, match=r"^task 'bad'"):
        with_tasks(("bad", Unreadable(way=way)), good).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_that_no_file_can_hold_are_kept_as_escapes(tmp_path):
    class Odd(Given):
        """Answers with half a pair, or none."""

        name: ClassVar[str] = "odd"

        def examples(self):
            return [Example(QUESTION, answer) for answer in ("\ud83d", None, 5)]

        def is_correct(self, text, example):
            return False

    results = with_tasks(("odd", Odd(gen_length=2))).run(tmp_path)
    assert not results.failed
    (kept,) = {cell["examples_id"] for cell in results.manifest["cells"]}
    assert [e["answer"] for e in results.examples(kept)] == ["\\ud83d", "None", "5"]
    report.write(results)


def test_a_failure_that_was_mended_or_left_the_study_is_not_told_again(tmp_path):
    tasks = [{"name": "word_problems", "limit": 1, "gen_length": 4}]
    samplers = [*SAMPLERS, {"name": "exits", "unmasking": Exits()}]
    assert study(tasks, samplers=samplers).run(tmp_path).failed
    assert not study(tasks).run(tmp_path).failed


def test_merging_tells_what_failed_in_a_shard(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    tasks = [{"name": "word_problems", "limit": 2, "gen_length": 2}]
    made = study(tasks, samplers=[*SAMPLERS, {"name": "exits", "unmasking": Exits()}], batch_size=1)
    for i in (1, 2):
        made.run(tmp_path, shard=(i, 2))
    merged = made.merge(tmp_path)
    (message,) = merged.failed.values()
    assert message.startswith("bundled / word_problems / exits / seed 0: ")
    assert "SystemExit: 3" in message


class Never(UnmaskingPolicy):
    """Commits nothing."""

    name: ClassVar[str] = "never"

    def select(self, state, observation):
        return observation.eligible & False


def test_a_policy_that_never_chooses_is_not_silent(tmp_path):
    tasks = [{"name": "word_problems", "limit": 2, "gen_length": 8}]
    path = written(tmp_path, tasks=tasks, samplers=SAMPLERS, baseline="a")
    made = study(tasks, samplers=[*SAMPLERS, {"name": "never", "unmasking": Never()}])
    results = made.run(tmp_path / "out")
    shares = {row.sampler: row.estimates["forced_share"].value for row in results.rows}
    assert shares["a"] == 0
    assert shares["never"] == 1
    (warning,) = results.warnings
    assert warning.startswith("never (bundled, word_problems): 100 % of its commits were forced")
    report.write(results)
    for name in ("report.md", "report.html", "report.tex"):
        assert "of its commits were forced" in (tmp_path / "out" / name).read_text().replace("\\", ""), name
    code, out, err = finished("report", tmp_path / "out")
    assert code == 0
    assert "warning: never" in err
    assert "forced" in out.splitlines()[2]
    assert finished("compare", path, "--output", tmp_path / "other")[2].count("warning") == 0
    assert Results(tmp_path / "other").warnings == []
