"""What a newcomer expects to find: and that it says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import dllm_sampling

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    known = {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers",
        "keywords", "license", "license-url", "message", "preferred-citation", "references", "repository",
        "repository-artifact", "repository-code", "title", "type", "url", "version",
    }  # fmt: skip
    assert set(citation) <= known
    assert all(set(author) <= {"name"} for author in citation["authors"])
    assert citation["type"] in {"software", "dataset"}
    assert citation["title"] == PROJECT["project"]["name"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert str(citation["version"]) == PROJECT["project"]["version"] == dllm_sampling.__version__


def test_the_changelog_has_a_place_for_the_next_change():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert sections[0] == "Unreleased"
    headings = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(r"^## \[Unreleased\]\n\n### \w+\n\n- ", text, re.MULTILINE)


def test_the_changelog_counts_what_ships():
    from dllm_sampling.plugins.discovery import load

    text = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    shipped = load("strategies,caches", strict=True)
    counts = {
        kind: len(shipped.names(kind))
        for kind in ("unmasking", "cache", "schedule", "transforms", "wrappers")
    }
    assert (
        f"{counts['unmasking']} unmasking policies, {counts['cache']} cache policies, "
        f"{counts['schedule']} block schedules, {counts['transforms']} logits transforms and "
        f"{counts['wrappers']} wrappers"
    ) in text


def test_hooks_before_a_commit_are_the_checks_of_ci(tmp_path):
    # The tool's own check; outside the checkout, as it looks for a repository.
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    at_commit = [hook["entry"] for hook in hooks.values() if hook["stages"] == ["pre-commit"]]
    recipe = _recipe("lint")
    assert at_commit == [line.replace("$(BIN)", ".venv/bin") for line in recipe]
    assert hooks["types-and-contract"]["stages"] == ["pre-push"]
    targets = hooks["types-and-contract"]["entry"].removeprefix("make ").split()
    assert all(_recipe(target) for target in targets)
    assert {"lint", *targets} <= set(re.search(r"^test: (.+)$", _makefile(), re.MULTILINE)[1].split())
    assert set(config["default_install_hook_types"]) == {"pre-commit", "pre-push"}


def _makefile():
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def _recipe(target):
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", _makefile(), re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


def test_every_command_of_the_guide_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for targets in re.findall(r"\bmake ((?:[a-z]+ ?)+)(?:`|\s+#)", text):
        for target in targets.split():
            assert re.search(rf"^{target}:", _makefile(), re.MULTILINE), target
    for path in re.findall(r"[`(]((?:docs|tests|dllm_sampling|strategies|caches)/[\w/.]*)[`)]", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"dllm-sampling (\w+)", text):
        assert re.search(
            rf"^def {command}\(", (ROOT / "dllm_sampling/cli/app.py").read_text(), re.MULTILINE
        ), command


def test_types_and_data_are_in_the_packages():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["dllm_sampling"]
    assert (ROOT / "dllm_sampling" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]
    # Every file of the package that is no module is named by a pattern, or the wheel would lack it.
    packages = PROJECT["tool"]["setuptools"]["packages"]
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "dllm_sampling"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        path = Path(name)
        if path.suffix == ".py" and path.parent.as_posix().replace("/", ".") in packages:
            continue
        parents = [p for p in path.parents if p.as_posix().replace("/", ".") in data]
        assert any(path.relative_to(p).match(pattern) for p in parents for pattern in data[_dotted(p)]), name


def _dotted(path):
    return path.as_posix().replace("/", ".")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    copied = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in copied.stdout.splitlines():
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    code = "from setuptools import build_meta; build_meta.build_sdist('../dist')"
    subprocess.run([sys.executable, "-c", code], cwd=folder / "source", check=True, capture_output=True)
    with tarfile.open(next((folder / "dist").glob("*.tar.gz"))) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def test_the_sdist_holds_what_builds_and_tests_it(sdist):
    for name in (
        "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile",
        "constraints.txt", "strategies/unmasking/factor.py", "strategies/schedules/sliding.py", "caches/dual.py",
        "dllm_sampling/py.typed", "dllm_sampling/bundled/references.bib",
        "dllm_sampling/bundled/word-problems/model.safetensors", "tests/test_rules.py",
        "tests/data/published/klass.json", "tests/data/llada/model.safetensors", "docs/decisions.md",
        "docs/catalogue/klass.md", "strategies/README.md", "caches/README.md",
    ):  # fmt: skip
        assert name in sdist, name
    assert not any(name.startswith((".venv", "build/", "results/", ".git/")) for name in sdist)
    assert not any("__pycache__" in name for name in sdist)


def test_the_minimum_run_is_at_the_floors():
    lines = (ROOT / "constraints-min.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    floors = {}
    for requirement in PROJECT["project"]["dependencies"]:
        name, floor = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        if "python_version" not in requirement:
            floors[name] = floor
    # torch is excepted: its version is that of the other run.
    assert (
        f"torch=={pinned.pop('torch')}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    )
    assert pinned == {name: floor for name, floor in floors.items() if name != "torch"}
    assert _recipe("minimum")
