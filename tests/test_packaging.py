"""The built wheel holds what the package promises, used from outside the checkout."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.models import printed_by

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    build = folder / "source"
    # A copy, so that building leaves nothing in the checkout.
    copied = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in copied.stdout.splitlines():
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            target = build / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "-w", str(folder), str(build)], check=True, cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_works_from_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    assert "dllm_sampling/strategies/unmasking/factor.py" in names
    assert "dllm_sampling/caches/dual.py" in names
    assert "dllm_sampling/bundled/word-problems/model.safetensors" in names
    assert "dllm_sampling/py.typed" in names
    assert not any(name.startswith(("strategies/", "caches/", "tests/")) for name in names)
    # Notes for those who read the source.
    assert not {"dllm_sampling/strategies/README.md", "dllm_sampling/caches/README.md"} & names
    code = (
        "import dllm_sampling, dllm_sampling.strategies as s, dllm_sampling.caches as c\n"
        "from dllm_sampling import Sampler, load_model\n"
        f"assert all(m.__file__.startswith({str(site)!r}) for m in (dllm_sampling, s, c))\n"
        "result = Sampler(load_model(), unmasking='fixed_k', cache='dual').generate(\n"
        "    'Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?', gen_length=64)\n"
        "print(result.texts[0].split()[-1])"
    )
    assert printed_by(code, site, tmp_path) == "24"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_engine_imports_no_strategy():
    for path in (ROOT / "dllm_sampling").rglob("*.py"):
        for name in imports(path):
            assert not name.startswith(("dllm_sampling.strategies", "dllm_sampling.caches")), path
            assert name.split(".")[0] not in {"strategies", "caches"}, path


def test_what_ships_uses_public_names_only():
    import dllm_sampling

    own = ("dllm_sampling.strategies", "dllm_sampling.caches")
    for folder in ("strategies", "caches"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in imports(path):
                assert not name.startswith("dllm_sampling.") or name.startswith(own), (path, name)
    assert all(getattr(dllm_sampling, name) is not None for name in dllm_sampling.__all__)


def documentation(tree):
    """The lines of docstrings, and of what a class says of itself beside its name."""
    facts = {"rule", "sources", "needs", "exact_with", "bibtex"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            found |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in facts:
            found |= set(range(node.lineno, node.end_lineno + 1))
    return found


def test_a_strategy_is_under_80_lines_of_code():
    for folder in ("strategies", "caches"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "__init__.py":
                continue  # a list of names
            documented = documentation(ast.parse(path.read_text()))
            lines = enumerate(path.read_text().splitlines(), 1)
            code = [
                line
                for i, line in lines
                if line.strip() and i not in documented and not line.strip().startswith("#")
            ]
            assert len(code) < 80, path
