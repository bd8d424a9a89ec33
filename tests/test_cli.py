"""The command line as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests import cli_cases
from tests.models import DATA
from tests.test_plugins import GOOD

COMMAND = [sys.executable, "-m", "dllm_sampling.cli"]
QUESTION = "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"


def run(*arguments, stdin="", **environment):
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=120,
    )


def forked(*arguments, stdin="", **environment):
    """The same in a fork of this process, which need not import everything again."""
    code, out, err = cli_cases.run(cli_cases.Typed(list(arguments), stdin.encode(), environment))
    return subprocess.CompletedProcess(arguments, code, out, err)


def test_help_imports_no_torch():
    code = "import sys\nfrom dllm_sampling.cli import app\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for arguments in ([], ["generate"], ["strategies"], ["plugins"], ["config"]):
        done = run(*arguments, "--help", PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 0
        assert "Usage:" in done.stdout
        assert " torch\n" not in done.stderr
        assert "typer" in done.stderr  # imports were listed


def test_generate_answers_on_stdout_and_counts_on_stderr():
    done = run("generate", QUESTION, "--gen-length", "64", "--cache", "dual", "--unmasking", "fixed_k")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("#### 24")
    assert "fixed_k + dual:" in done.stderr
    assert "a forward" in done.stderr


def test_generate_json_from_stdin_with_overrides():
    done = run(
        "generate", "--json", "--gen-length", "64", "--set", "unmasking.threshold=0.8", "--block-length", "16",
        "--batch-size", "2", "--seed", "3", stdin=f"{QUESTION}\n\n{QUESTION}\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["config"]["sampler"]["unmasking"] == {
        "name": "confidence_threshold",
        "threshold": 0.8,
        "score": {"name": "confidence"},
    }
    assert data["config"]["sampler"]["schedule"]["block_length"] == 16
    assert data["config"]["seed"] == 3
    assert len(data["results"]) == 2
    assert data["results"][0]["text"] == data["results"][1]["text"]
    assert data["tokens"] == sum(row["tokens"] for row in data["results"])


def test_generate_from_a_config_and_files(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump({"gen_length": 64, "sampler": {"unmasking": "fixed_k", "cache": "prefix"}})
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"question": QUESTION}) + "\n")
    done = forked("generate", "--config", str(config), "--file", str(prompts), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("#### 24")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["generate", "x", "--unmasking", "confidence"], "", "Did you mean 'confidence_threshold'"),
        (["generate", "x", "--set", "unmasking.threshold=0"], "", "greater than 0"),
        (["generate", "x", "--set", "unmasking.treshold=0.5"], "", "Did you mean 'threshold'"),
        (["generate", "x", "--gen-length", "0"], "", "gen_length"),
        (["generate", "x", "--gen-length", "5000"], "", "exceed the model's context"),
        (["generate", " "], "", "prompt 0 is empty"),
        (["generate"], "", "the input is empty"),
        (["generate", "--file", "/no/such/file"], "", "No such file"),
        (["generate", "x", "--file", "y"], "", "not both"),
        (["generate", "x", "--model", "./no_such_folder"], "", "does not exist"),
        (["generate", "x", "--model", str(DATA / "llada")], "", "no tokenizer"),
        (["generate", "x", "--device", "abacus"], "", "none of torch's"),
        (["generate", "x", "--block-length", "8", "--schedule", "whole_canvas"], "", "block_length"),
        (["generate", "x", "--plugins-dir", "/no/such"], "", "does not exist"),
        (["strategies", "dul"], "", "Did you mean 'dual'"),
        (["config", "validate", "/no/such.yaml"], "", "No such file"),
        (["generat"], "", "No such command"),
        (["generate", "--no-such-option"], "", "No such option"),
    ],
)
def test_user_errors_exit_with_2_and_show_no_traceback(arguments, stdin, message):
    done = forked(*arguments, stdin=stdin)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["strategies", "--plugins-dir", ""], "--plugins-dir '' names no folder"),
        (["frequencies", "word_problems", "--output", ""], "--output '.' names no file"),
    ],
)
def test_an_empty_path_is_not_the_working_folder(arguments, message):
    code, out, err = cli_cases.run(cli_cases.Typed(arguments))
    assert (code, out) == (2, "")
    assert message in err


def test_a_rule_that_is_never_true_is_not_silent(tmp_path):
    # A plugin whose rule compares a logarithm with a probability.
    (tmp_path / "never.py").write_text(
        GOOD.replace("return observation.eligible.cumsum(1).le(self.count) & observation.eligible",
                     "return (observation.log_confidence > 0.9) & observation.eligible")
    )  # fmt: skip
    base = ["generate", QUESTION, "--gen-length", "32"]
    never = [*base, "--unmasking", "left_to_right", "--plugins-dir", str(tmp_path)]
    _, _, err = cli_cases.run(cli_cases.Typed([*base, "--unmasking", "fixed_k"]))
    assert re.search(r", 0 of \d+ commits forced, ", err)
    assert "warning" not in err
    _, _, err = cli_cases.run(cli_cases.Typed(never))
    assert "32 of 32 commits forced, " in err  # those behind the end of the answer are among them
    assert "warning: 100 % of the commits were forced: where left_to_right chooses nothing" in err
    _, out, err = cli_cases.run(cli_cases.Typed([*never, "--json", "--quiet"]))
    counts = json.loads(out)
    assert counts["forced"] == counts["commits"] == counts["results"][0]["commits"] == 32
    assert counts["forced_share"] == 1
    assert err.startswith("warning: 100 %")


@pytest.mark.parametrize(
    "command", [["config", "validate"], ["config", "show"], ["generate", "x", "--config"]]
)
def test_a_study_is_not_taken_for_a_run(command):
    status, out, err = cli_cases.run(cli_cases.Typed([*command, "study.yaml"]))
    assert (status, out) == (2, "")
    assert re.fullmatch("error: .*is a study.* `dllm-sampling compare.*\n", err)


def test_ctrl_c_ends_a_run_without_a_traceback():
    """Whether it is still loading or decoding already."""
    arguments = ["generate", *[QUESTION] * 100, "--gen-length", "256", "--batch-size", "1"]
    for patience in (1, 6):
        # Where the tests were started with ctrl-C ignored, as by nohup, the command would ignore it too.
        running = subprocess.Popen(
            [*COMMAND, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - before any code of ours
        )
        time.sleep(patience)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 130
        assert "Traceback" not in err


def test_whatever_is_typed_ends_in_an_answer_or_in_one_sentence():
    _, faults = cli_cases.check(25, 1000)
    assert not faults, "\n".join(faults)


def test_strategies_lists_every_policy():
    done = forked("strategies", "--json")
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert {"confidence_threshold", "factor", "fixed_k", "none", "prefix", "dual", "interval"} <= set(entries)
    parameters = entries["confidence_threshold"]["parameters"]
    assert parameters["threshold"]["default"] == 0.9
    assert entries["confidence_threshold"]["owner"] == "strategies"
    text = forked("strategies").stdout
    assert all(name in text for name in entries)
    one = forked("strategies", "fixed_k").stdout
    assert "score (score; default confidence)" in one
    assert "2502.09992" in one


def test_a_plugins_folder_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text("raise ValueError('no')")
    done = forked("strategies", "left_to_right", "--plugins-dir", str(tmp_path))
    assert "Commit the leftmost open target." in done.stdout
    assert "warning: plugin bad" in done.stderr
    done = forked("plugins", "--json", "--plugins-dir", str(tmp_path))
    status = {plugin["name"]: plugin["status"] for plugin in json.loads(done.stdout)}
    assert status == {"mine": "loaded", "bad": "broken"}
    done = forked("plugins", "--all", DLLM_SAMPLING_PLUGINS_DIR=str(tmp_path))
    assert "ValueError: no" in done.stdout
    assert "strategies" in done.stdout
    done = forked(
        "generate",
        QUESTION,
        "--gen-length",
        "32",
        "--unmasking",
        "left_to_right",
        "--plugins-dir",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr


def test_config_commands(tmp_path):
    shown = forked("config", "show", "--set", "cache=dual")
    path = tmp_path / "run.yaml"
    path.write_text(shown.stdout)
    assert yaml.safe_load(shown.stdout)["sampler"]["cache"] == {"name": "dual"}
    assert forked("config", "validate", str(path)).stdout == f"{path}: valid\n"
    assert json.loads(forked("config", "schema").stdout)["$defs"]["cache"]
