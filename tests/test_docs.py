"""The documentation: it builds, it is complete, its signatures are the code's, and what it shows runs."""

from __future__ import annotations

import ast
import html
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch

import dllm_sampling
import dllm_sampling.testing
from dllm_sampling import Sampler, Wrapper, load_model
from dllm_sampling.plugins import discovery as plugins
from dllm_sampling.plugins.offers import DiscoverySpec
from dllm_sampling.policies import run_spec as hookspecs
from dllm_sampling.policies.kinds import KINDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
BIN = Path(sys.executable).parent
QUESTIONS = [
    "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?",
    "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. Mia buys 6. Mia loses 4. How many pens?",
    "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?",
]


def script(name):
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


reference = script("gen_reference")


def name_of(page):
    return str(page.relative_to(ROOT))


# Blocks ------------------------------------------------------------------------------------------


class Block(NamedTuple):
    language: str
    title: str | None
    text: str
    line: int
    runs: bool


FENCE = re.compile(r'^```(\w*)[ ]*(?:title="([^"]+)")?\s*$')
NOT_RUN = re.compile(r"^<!-- not run: \S.* -->$")


def blocks_of(page):
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    begun = None
    for number, line in enumerate(lines):
        if begun is None and line.startswith("```"):
            opening = FENCE.match(line)
            assert opening, f"{name_of(page)}:{number + 1}: what block is {line!r}?"
            begun = number
        elif begun is not None and line.strip() == "```":
            text = "\n".join(lines[begun + 1 : number]) + "\n"
            runs = not (begun and NOT_RUN.match(lines[begun - 1]))
            found.append(Block(opening[1], opening[2], text, begun + 1, runs))
            begun = None
    assert begun is None, f"{name_of(page)}: a block is not closed."
    return found


def is_test(block):
    return block.title is not None and Path(block.title).name.startswith("test_")


def environment(folder):
    """Commands of the environment come first, and what pip installs goes into the folder."""
    site = str(folder / "site")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DLLM_SAMPLING")}
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": site,
        "PIP_TARGET": site,
        "PIP_UPGRADE": "1",  # a second package may bring the same bin/
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the other way round
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.runs for b in blocks_of(p))], ids=name_of)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    """In order, in one folder: titled blocks are saved, Python shares a namespace, shell blocks get a shell."""
    monkeypatch.chdir(tmp_path)
    for variable in (plugins.SELECT, plugins.FOLDER, plugins.STRICT):
        monkeypatch.setenv(variable, "")  # so that what a page sets is undone
        monkeypatch.delenv(variable)
    plugins._loaded.cache_clear()  # a folder of that name may have been another page's
    module = types.ModuleType("documented")
    module.__file__ = str(tmp_path / "documented.py")
    monkeypatch.setitem(sys.modules, "documented", module)
    try:
        for block in blocks_of(page):
            if block.runs:
                run_block(page, block, module, tmp_path)
    finally:
        plugins._loaded.cache_clear()


def run_block(page, block, module, folder):
    where = f"{name_of(page)}:{block.line}"
    if block.title is not None:
        target = folder / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")
    if block.language == "python" and not is_test(block):
        # Lines keep their numbers, so that a traceback points into the page.
        code = compile("\n" * block.line + block.text, where, "exec")
        exec(code, vars(module))
    elif block.language == "bash":
        done = subprocess.run(
            ["bash", "-e", "-c", block.text],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{where}\n{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_on_a_page_are_run_by_it(page):
    blocks = blocks_of(page)
    shell = "\n".join(block.text for block in blocks if block.language == "bash" and block.runs)
    for block in blocks:
        assert not is_test(block) or f"pytest -q {block.title}" in shell, (name_of(page), block.title)


# The site ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(path):
    return html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))


def test_the_site_is_built_strictly(site):
    assert "masked diffusion language models" in text_of(site / "index.html").lower()
    assert not list(site.rglob("gen_*.py"))
    for page in site.rglob("*.html"):
        assert not re.search(r"\{\{ (signature|public names):", page.read_text(encoding="utf-8")), page


def test_the_site_asks_no_other_server(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not loaded, page


def test_every_hook_is_documented(site):
    text = text_of(site / "hooks.html")
    for spec in (hookspecs.RunSpec, DiscoverySpec):
        for name in hookspecs.hook_names(spec):
            assert f"def {name}(" in text, name
            assert inspect.getdoc(getattr(spec, name)).splitlines()[0].replace("`", "") in text
    words = " ".join(text.split())
    for function in (*vars(hookspecs.RunSpec).values(), *reference.called_by_the_engine()):
        if inspect.isfunction(function):
            for heading in ("Called", "May change", "On a bad answer"):
                said = reference.sections(function)[heading].contents.replace("`", "")
                assert f"{heading} {' '.join(said.split())}" in words, (function.__name__, heading)


def test_every_command_is_documented_with_its_options(site):
    text = text_of(site / "cli.html")
    for arguments in ([], ["generate"], ["config", "show"], ["new"]):
        done = subprocess.run(
            [BIN / "dllm-sampling", *arguments, "--help"],
            env=os.environ | {"COLUMNS": "90", "TERMINAL_WIDTH": "90"},
            capture_output=True,
            text=True,
            check=True,
        )
        for option in re.findall(r"--[\w-]+", done.stdout):
            assert option in text
    from dllm_sampling.cli.app import app, config_app

    for group, prefix in ((app, ""), (config_app, "config ")):
        for command in group.registered_commands:
            name = command.name or command.callback.__name__
            own = name.removeprefix("config_") if prefix else name
            assert f"Usage: dllm-sampling {prefix}{own}" in text


def test_every_shipped_policy_has_a_page_of_the_catalogue(site):
    found = plugins.load("strategies,caches", strict=True)
    index = text_of(site / "catalogue" / "index.html")
    for kind in KINDS:
        for name, cls in found.classes(kind.kind).items():
            assert re.search(rf"\b{name}\b", index), name
            text = text_of(site / "catalogue" / f"{name}.html")
            for field in cls.model_fields:
                assert field in text, (name, field)


@pytest.mark.parametrize("module", [dllm_sampling, dllm_sampling.testing], ids=lambda m: m.__name__)
def test_every_public_name_is_in_the_reference(site, module):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in module.__all__:
        assert f'id="{module.__name__}.{name}"' in text, name


def test_pictures_are_those_that_the_script_draws():
    figures = script("gen_figures")
    for name, draw in figures.FIGURES.items():
        stored = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert stored == draw(), f"{name}: run python docs/gen_figures.py"


def test_measured_numbers_are_those_of_the_pages_they_come_from():
    study = {}
    for line in (DOCS / "examples" / "word_problems.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if len(cells) > 8:
            study[cells[0].replace("** (baseline)", "")] = [cell.split(" ")[0] for cell in cells]
    names = {"`fixed_k`, k": "fixed-k", "`confidence_threshold`": "threshold", "`factor`": "factor"}
    compared = 0
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rule, _, parameter = cells[0].rpartition(" ")
        if rule in names:
            own = study[f"{names[rule]} {parameter}, none"]
            speedup = own[5].removesuffix("x") or "1"
            assert cells[1:] == [f"{own[1].removesuffix('%')} %", own[2], speedup], line
        elif cells[0] in ("`none`", "`prefix`", "`dual`") and len(cells) == 4:
            own = study[f"threshold 0.99, {cells[0].strip('`')}"]
            share = f"{own[6].removesuffix('%')} %"
            assert cells[1:] == [f"{own[1].removesuffix('%')} %", own[5].removesuffix("x"), share], line
        else:
            continue
        compared += 1
    assert compared == 11
    measured = (DOCS / "performance.md").read_text(encoding="utf-8")
    for milliseconds in re.findall(r"([\d.]+) ms", text):
        assert f" {milliseconds} ms" in measured, milliseconds


# Signatures --------------------------------------------------------------------------------------


def callables():
    """Everything public that can be called, by the name a page may use for it."""
    found = {}
    for module in (dllm_sampling, dllm_sampling.testing):
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue
            found[name] = value
            for key in vars(value) if inspect.isclass(value) else ():
                if callable(getattr(value, key)) and not key.startswith("_"):
                    found[f"{name}.{key}"] = getattr(value, key)
    state = dllm_sampling.DecodingState
    methods = {f"state.{k}": getattr(state, k) for k in vars(state) if callable(getattr(state, k))}
    observation = {"observation.log_prob": dllm_sampling.Observation.log_prob}
    return found | methods | observation


def problem(call, function):
    """What is wrong with a call shown in a page, or None."""
    bound = list(inspect.signature(function).parameters.values())
    names = [p.name for p in bound if p.name not in ("self", "cls")]
    if any(p.kind is p.VAR_KEYWORD for p in bound):
        return None
    for keyword in call.keywords:
        if keyword.arg is not None and keyword.arg not in names:
            return f"there is no parameter {keyword.arg!r}"
    positional = [p for p in bound if p.name in names and p.kind is p.POSITIONAL_OR_KEYWORD]
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    if (
        len(call.args) > len(positional)
        and not starred
        and not any(p.kind is p.VAR_POSITIONAL for p in bound)
    ):
        return f"it takes {len(positional)} positional arguments"
    return None


def calls_in(source):
    try:
        tree = ast.parse(source.strip())
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_calls_shown_on_a_page_fit_the_code(page):
    """Inline code and blocks, those that are not run included."""
    text = page.read_text(encoding="utf-8")
    shown = [b.text for b in blocks_of(page) if b.language == "python"]
    shown += re.findall(r"`([^`\n]+\([^`\n]*\))`", text)
    known = callables()
    for source in shown:
        for call, name in calls_in(source.replace("...", "")):
            if name in known:
                wrong = problem(call, known[name])
                assert wrong is None, f"{name_of(page)}: {ast.unparse(call)}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_hooks_written_on_a_page_take_the_arguments_they_get(page):
    arguments = {
        name: set(inspect.signature(getattr(hookspecs.RunSpec, name)).parameters)
        for name in hookspecs.hook_names(hookspecs.RunSpec)
    }
    arguments["transform"] = {"self", "state", "observation"}
    arguments["idle_steps"] = {"self", "targets"}
    for block in (b for b in blocks_of(page) if b.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.FunctionDef) and node.name.removeprefix("wrap_") in arguments:
                taken = {argument.arg for argument in node.args.args}
                assert taken <= arguments[node.name.removeprefix("wrap_")], (name_of(page), node.name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_signatures_on_a_page_come_from_the_code(page):
    """Bare `def` lines are not typed by hand: they stand as `{{ signature: NAME }}`, which resolves."""
    text = page.read_text(encoding="utf-8")
    for name in reference._SIGNATURE.findall(text):
        shown = reference.signature(name.rpartition(".")[2], reference.public(name))
        found = reference.public(name)
        for parameter in inspect.signature(found.__init__ if inspect.isclass(found) else found).parameters:
            assert parameter in shown or parameter in ("self", "cls"), (name, parameter)
    assert not re.search(r"`def \w+\(", text)


# Hooks -------------------------------------------------------------------------------------------

COUNTS: Counter[str] = Counter()
# How the docstring of a hook begins to say when it is called.
OFTEN = {
    "Once a batch": "batch",
    "Once a block": "block",
    "Every step": "step",
    "Each time rows leave": "rows",
}


class Counting(Wrapper):
    """Counts the calls of every hook by standing around it, or where that cannot be by answering it."""

    name: ClassVar[str] = "counting"

    def close(self):
        COUNTS["close"] += 1

    def forbid(self, observation):
        COUNTS["forbid"] += 1
        return torch.zeros_like(observation.masked)


def _counted(hook):
    def around(self):
        COUNTS[hook] += 1
        return (yield)

    return around


for _hook in hookspecs.hook_names(hookspecs.RunSpec) - {"close", "forbid"}:
    setattr(Counting, f"wrap_{_hook}", _counted(_hook))


def test_hooks_are_called_as_often_as_documented():
    COUNTS.clear()
    sampler = Sampler(
        load_model(),
        unmasking={"name": "fixed_k", "k": 2},
        schedule={"name": "fixed_blocks", "block_length": 16},
        wrappers=[Counting()],
        batch_size=2,
    )
    seen = {"step": 0, "block": 0, "rows": 0}
    rows = 0
    for step in sampler.steps(QUESTIONS, gen_length=64):
        seen["step"] += 1
        seen["block"] += step.region.starts_block
        began = step.state.forward_index == 0
        seen["rows"] += not began and step.state.batch < rows
        rows = step.state.batch
    expected = seen | {"batch": 2}
    assert seen["rows"] > 0
    assert 2 < seen["block"] < seen["step"]
    for hook in hookspecs.hook_names(hookspecs.RunSpec):
        called = reference.first_sentence(getattr(hookspecs.RunSpec, hook), "Called")
        often = next(unit for opening, unit in OFTEN.items() if called.startswith(opening))
        assert COUNTS[hook] == expected[often], hook


def test_the_pictures_of_caches_show_what_a_policy_plans():
    figures = script("gen_figures")
    forwards = list(figures.recorded("dual"))
    length = figures.PROMPT + figures.TARGETS
    assert [sum(computed) for computed, _, _ in forwards] == [length, 8, 8, 8] * 3
    assert all(sum(chosen) == 2 for _, _, chosen in forwards)
