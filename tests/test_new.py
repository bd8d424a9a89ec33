"""`dllm-sampling new`: what it writes installs and passes its tests as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sampling import ConfigurationError
from dllm_sampling.cli import new as command
from dllm_sampling.plugins import discovery as plugins
from tests.models import printed_by
from tests.test_cli import run
from tests.test_plugins import GOOD

# Name as given, name as registered, and what the kind is called.
KINDS = {
    "unmasking-policy": ("by-margin", "by_margin", "unmasking policy"),
    "cache-policy": ("every_so_often", "every_so_often", "cache policy"),
    "block-schedule": ("growing", "growing", "block schedule"),
    "transform": ("sharper-2", "sharper_2", "logits transform"),
    "wrapper": ("close-by", "close_by", "wrapper"),
    "observer": ("counting", "counting", "observer"),
    "model-family": ("my-llama", "my_llama", "model family"),
    "task": ("two_steps", "two_steps", "task"),
}
# Files that one kind has besides.
MORE = {"model-family": {"make_checkpoint.py"}}
FILES = {".gitignore", "README.md", "pyproject.toml", "study.yaml"}


def python(folder, *arguments, path=""):
    """What Python prints in a new process in `folder`, and its exit code."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder with one package of each kind, and what the commands printed."""
    root = tmp_path_factory.mktemp("new")
    calls = [f"app({['new', kind, name]}, standalone_mode=False)" for kind, (name, _, _) in KINDS.items()]
    return root, printed_by("\n".join(["from dllm_sampling.cli import app", *calls]), "", root)


@pytest.fixture(scope="module")
def installed(written):
    """The same, and a folder in which pip has installed all of them."""
    root, _ = written
    site = root / "site"
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    for kind in KINDS:
        printed, code = python(root, *pip, f"./{folder_of(kind)}")
        assert code == 0, printed
    return root, site


def folder_of(kind):
    return KINDS[kind][1].replace("_", "-")


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_a_package(written, kind):
    root, printed = written
    _, module, title = KINDS[kind]
    package = root / folder_of(kind)
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    sources = {f"src/{module}/__init__.py", f"src/{module}/py.typed", f"tests/test_{module}.py"}
    built = {file for file in files if "egg-info" in file or file.startswith("build/")}
    expected = FILES | sources | MORE.get(kind, set())
    assert files - built == expected
    assert all(file in printed for file in expected)
    assert f"{title}, {module}" in printed
    # Open to others as far as any folder that is made here.
    plain = root / "plain"
    plain.mkdir(exist_ok=True)
    assert package.stat().st_mode == plain.stat().st_mode
    # Nothing is left to fill in, and nothing beside it.
    texts = [(package / file).read_text() for file in expected]
    assert not any("$" in text for text in texts)
    assert not list(root.glob(".*"))


def test_every_package_passes_its_tests(installed):
    """As `pytest` runs them in each folder; in one process, to import torch once."""
    root, site = installed
    folders = [str(root / folder_of(kind)) for kind in KINDS]
    code = (
        "import os, pytest\n"
        f"for folder in {folders}:\n"
        "    os.chdir(folder)\n"
        "    print('exit code', int(pytest.main(['-p', 'no:cacheprovider'])))"
    )
    printed, _ = python(root, "-c", code, path=site)
    assert printed.count("exit code 0") == len(KINDS), printed
    # The conformance checks were among them.
    passed = dict(zip(KINDS, map(int, re.findall(r"(\d+) passed", printed)), strict=True))
    assert all(count > 10 for count in passed.values()), passed


def test_the_tests_notice_a_broken_rule(installed, tmp_path):
    """The rule's own test fails where the rule is another one."""
    root, site = installed
    broken = {
        "unmasking-policy": (">= self.margin", "<= self.margin", "commits"),
        "cache-policy": ("% self.interval", "% (self.interval + 1)", "refreshes"),
        "block-schedule": ("length += self.growth", "length += 1", "longer"),
        "transform": ("(self.sharpness - 1)", "self.sharpness", "sharpens"),
        "wrapper": ("leftmost + self.distance", "leftmost + self.distance + 1", "near"),
        "observer": ("decision.commit.sum()", "decision.commit.sum() + 1", "writes"),
        "model-family": ('== "my_llama"', 'in ("my_llama", "llama")', "alone"),
        "task": (".rpartition(", ".partition(", "right"),
    }
    own_tests = []
    for kind, (_, module, _) in KINDS.items():
        text = (site / module / "__init__.py").read_text()
        rule, other, word = broken[kind]
        assert text.count(rule) == 1
        (tmp_path / f"{module}.py").write_text(text.replace(rule, other))
        file = root / folder_of(kind) / "tests" / f"test_{module}.py"
        names = [name for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M) if word in name]
        assert len(names) == 1, names
        own_tests.append(f"{file}::{names[0]}")
    path = os.pathsep.join([str(tmp_path), str(site)])
    printed, _ = python(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", *own_tests, path=path)
    assert f"{len(own_tests)} failed" in printed, printed
    for_this_reason = re.findall(r"^E       (?:AssertionError: )?assert ", printed, re.M)
    assert len(for_this_reason) == len(own_tests), printed


# What stands in the README of kinds for which that is not `strategies`, `generate`, `compare`.
COMMANDS = {"model-family": ["plugins", "generate", "compare"], "task": ["tasks", "compare"]}


def test_the_commands_of_every_readme_work(installed):
    """In one process, what stands behind `dllm-sampling` in the README, with a smaller limit."""
    root, site = installed
    commands = []
    for kind in KINDS:
        text = (root / folder_of(kind) / "README.md").read_text().replace("\\\n", " ")
        lines = [shlex.split(line) for line in text.splitlines() if line.startswith("dllm-sampling ")]
        assert [line[1] for line in lines] == COMMANDS.get(kind, ["strategies", "generate", "compare"])
        given = [["2" if part == "100" else part for part in line[1:]] for line in lines]
        commands.append(f"os.chdir({str(root / folder_of(kind))!r})")
        for script in re.findall(r"^python (\S+) checkpoint$", text, re.M):
            commands.append(f"runpy.run_path({script!r})['make'](Path('checkpoint'))")
        commands += [f"app({arguments!r}, standalone_mode=False)" for arguments in given]
    code = "import os, runpy\nfrom pathlib import Path\nfrom dllm_sampling.cli import app\n" + "\n".join(
        commands
    )
    printed = printed_by(code, site, root)
    for kind, (_, module, title) in KINDS.items():
        if kind != "model-family":
            assert f"{module}: {title}, from {module} ({folder_of(kind)} 0.1.0)" in printed
        assert (root / folder_of(kind) / "results" / "study" / "report.html").is_file()
    assert "backbone: my_llama" in printed
    assert printed.count("#### 24") >= len(KINDS) - 1
    commits = (root / "counting" / "commits.jsonl").read_text()
    assert commits.startswith('{"commits": [')


# What is refused ---------------------------------------------------------------------------------


def test_refusals_are_user_errors(tmp_path):
    done = run("new", "unmasking", "mine", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "unknown kind 'unmasking'. Did you mean 'unmasking-policy'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MyRule", "lower-case letters and digits, .* Did you mean 'my-rule'"),
        ("my rule", "Did you mean 'my-rule'"),
        ("2fast", "starting with a letter. Did you mean 'fast'"),
        ("a__b", "Did you mean 'a-b'"),
        ("../mine", "Did you mean 'mine'"),
        ("", "NAME ''"),
        ("lambda", "'lambda' is a keyword"),
        ("all", "'all' selects plugins in DLLM_SAMPLING_PLUGINS"),
        ("dual", r"'dual' is taken by the cache policy of the plugin caches \(dllm-sampling "),
        ("llada", r"'llada' is taken by the model family of the plugin backbones \(dllm-sampling "),
        ("word-problems", r"'word_problems' is taken by the task of the plugin bundled \(dllm-sampling "),
        ("confidence-threshold", "'confidence_threshold' .* unmasking policy of the plugin strategies"),
        ("strategies", r"is taken by an installed plugin \(dllm-sampling"),
        ("json", "a Python package of that name"),
        ("pyyaml", "a Python package of that name"),
        ("region", "its class would be called Region"),
        ("a" * 300, "cannot be written: File name too long"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, name, message):
    with pytest.raises(ConfigurationError, match=message):
        command.new("transform", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.setenv(plugins.FOLDER, str(tmp_path))
    for name in ("left-to-right", "mine"):
        with pytest.raises(ConfigurationError, match=r"is taken by .*mine\.py"):
            command.new("cache-policy", name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    taken = tmp_path / "my-rule"
    taken.mkdir()
    with pytest.raises(ConfigurationError, match="my-rule' exists already"):
        command.new("transform", "my_rule", tmp_path)
    assert list(taken.iterdir()) == []
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        command.new("transform", "my_rule", tmp_path / "none")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    write = Path.write_text

    def full(path, text, **more):
        if path.name == "study.yaml":
            raise OSError(28, "No space left on device")
        return write(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigurationError, match="cannot be written: No space left on device"):
        command.new("transform", "my-rule", tmp_path)
    assert list(tmp_path.iterdir()) == []
