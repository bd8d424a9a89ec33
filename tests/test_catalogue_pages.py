"""The catalogue says what the code says, and every method can be cited."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from dllm_sampling.caches import IntervalRefresh

from dllm_sampling import CachePolicy, ConfigurationError, ForwardPlan, Source
from dllm_sampling.plugins import references
from tests.test_cli import run
from tests.test_packaging import documentation

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "catalogue"


def _generator():
    spec = importlib.util.spec_from_file_location("gen_catalogue", ROOT / "docs" / "gen_catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


catalogue = _generator()
SHIPPED = catalogue.shipped()


# The committed pages ---------------------------------------------------------------------------------


def test_the_pages_are_those_of_the_code():
    written = catalogue.pages(catalogue.recorded())
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert set(written) == {"index.md"} | {f"{name}.md" for name in SHIPPED}
    stale = [name for name in set(written) | set(committed) if written.get(name) != committed.get(name)]
    assert not stale, f"run `python docs/gen_catalogue.py`: {sorted(stale)}"


def test_a_page_says_what_the_class_says():
    page = catalogue.pages(None)["trailing.md"]
    for said in (
        "Cache policy. Recompute the region, and what it has just left once more with its tokens.",
        "[min(s - left, s' - delay), e + right)",
        "| `left` | integer >= 0 | `24` | Positions before the region. |",
        "| `right` | integer >= 0 or none | `0` | Positions after it; none for all there are. |",
        "- Stored keys and values\n",
        "- DSB-cache ([arXiv:2602.05992](https://arxiv.org/abs/2602.05992))",
        "@misc{luo2026dsb,",
    ):
        assert said in page
    assert "study" not in page


@pytest.mark.parametrize("name", SHIPPED)
def test_a_class_says_its_rule_its_sources_and_what_it_needs(name):
    said, (summary, _) = vars(SHIPPED[name]), catalogue.summary_and_body(SHIPPED[name])
    assert summary.endswith(".")
    assert said["rule"].endswith(".")
    assert said["sources"]
    # The null policy alone needs nothing.
    assert bool(said["needs"]) == (name != "none")


def test_whether_a_cache_is_exact_stands_on_its_page():
    pages = catalogue.pages(None)
    assert "Yes: it decodes to the same tokens" in pages["none.md"]
    assert "With `interval` 1: it decodes to the same tokens" in pages["delayed.md"]
    assert "No: its tokens may differ" in pages["dual.md"]
    assert "exact" not in pages["factor.md"].lower()


def test_what_ships_is_all_that_the_command_lists():
    listed = json.loads(run("strategies", "--json").stdout)
    ours = [entry["name"] for entry in listed if entry["source"].startswith("dllm-sampling ")]
    assert sorted(ours) == sorted(SHIPPED)


# The study's rows ------------------------------------------------------------------------------------

ROWS = {
    "confidence_threshold": {
        "policy": "confidence_threshold", "accuracy": 0.98, "accuracy_interval": [0.96, 0.995],
        "tokens_per_forward": 4.9, "speedup": 5.6, "speedup_interval": [5.5, 5.8],
    },
    "klass 0.9": {
        "policy": "klass", "accuracy": 0.97, "accuracy_interval": [0.95, 0.99],
        "tokens_per_forward": 3.1, "speedup": 3.4, "speedup_interval": [3.3, 3.5],
    },
    "frechet": {
        "policy": "frechet", "accuracy": 0.9, "accuracy_interval": [0.88, 0.92],
        "tokens_per_forward": 5.3, "speedup": 6.1, "speedup_interval": [6.0, 6.2],
    },
    "dual": {
        "policy": "dual", "accuracy": 0.98, "accuracy_interval": [0.96, 0.995],
        "tokens_per_forward": 4.9, "speedup": 12.0, "speedup_interval": [11.8, 12.3],
    },
}  # fmt: skip


def test_a_rule_that_does_worse_is_said_to_do_worse():
    pages = catalogue.pages(ROWS)
    assert "| klass 0.9 | 97.0 % [95.0 %, 99.0 %] | 3.10 | 3.40x [3.30x, 3.50x] |" in pages["klass.md"]
    assert (
        "- klass 0.9: **worse than `confidence_threshold`**: accuracy 97.0 % against 98.0 % (intervals overlap); "
        "tokens a forward 3.10 against 4.90; speed-up 3.40x against 5.60x.\n"
    ) in pages["klass.md"]
    assert (
        "**worse than `confidence_threshold`**: accuracy 90.0 % against 98.0 %. Better: tokens a forward "
        "5.30 against 4.90; speed-up 6.10x against 5.60x.\n"
    ) in pages["frechet.md"]
    assert "- dual: better than `confidence_threshold`: speed-up 12.00x against 5.60x.\n" in pages["dual.md"]
    assert "98.0 %" in pages["confidence_threshold.md"]
    assert "worse" not in pages["confidence_threshold.md"]
    assert "study" not in pages["factor.md"]


# What to cite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_every_policy_has_an_entry(name):
    assert references.ids_of(SHIPPED[name])
    assert references.bibtex_of(SHIPPED[name]).startswith("@")


def test_the_entries_are_uniform_and_all_of_them_are_used():
    entries = references.shipped()
    keys = [entry.split("{")[1].split(",")[0] for entry in entries.values()]
    assert len(set(keys)) == len(keys) == len(entries)
    for i, entry in entries.items():
        lines = entry.splitlines()
        assert entry.count("{") == entry.count("}")
        fields = [line.split(" = ")[0].strip() for line in lines[1:-1]]
        assert {"title", "author", "year", "url"} <= set(fields)
        assert i in entry
        assert ("eprint" in fields) == ("archivePrefix = {arXiv}" in entry)
        if "eprint" in fields:
            assert f"eprint = {{{i}}}" in entry
            assert f"url = {{https://arxiv.org/abs/{i}}}" in entry
    assert set(entries) == {i for cls in SHIPPED.values() for i in references.ids_of(cls)}


def test_the_command_prints_entries():
    done = run("strategies", "trailing", "--bibtex")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("@misc{") == 2
    for key in ("luo2026dsb", "shu2026dcd"):
        assert key in done.stdout
    every = run("strategies", "--bibtex")
    assert every.stdout.count("@misc{") == len(references.shipped())
    without = run("strategies", "trailing")
    assert "left (integer >= 0; default 24)" in without.stdout
    assert "@misc" not in without.stdout


PLUGIN = """
from typing import ClassVar
from dllm_sampling import CachePolicy, ForwardPlan, Source

class Cited(CachePolicy):
    \"\"\"All of it.\"\"\"
    name: ClassVar[str] = "cited"
    bibtex: ClassVar[str] = "@misc{{own,\\n  title = {{Mine}},\\n}}"
    def plan_forward(self, state, region):
        return ForwardPlan.full(state)

class Uncited(CachePolicy):
    \"\"\"All of it.\"\"\"
    name: ClassVar[str] = "uncited"
    {facts}
    def plan_forward(self, state, region):
        return ForwardPlan.full(state)

def register():
    return [Cited, Uncited]
"""


def test_a_plugin_gives_its_own_entry_or_is_told_what_to_add(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN.format(facts=""))
    plugins = ("--plugins-dir", str(tmp_path))
    assert run("strategies", "cited", "--bibtex", *plugins).stdout == "@misc{own,\n  title = {Mine},\n}\n"
    done = run("strategies", "uncited", "--bibtex", *plugins)
    assert done.returncode == 2
    assert "uncited: no source with an id is known. Give Uncited one" in done.stderr
    assert 'sources: ClassVar[tuple[Source, ...]] = (Source("Fast-dLLM", arxiv="2505.22618"),)' in done.stderr
    assert run("strategies", "uncited", *plugins).returncode == 0
    assert "bibtex: ClassVar[str]" in done.stderr
    (tmp_path / "mine.py").write_text(
        PLUGIN.format(facts='sources = (Source("a paper", arxiv="2505.22618"),)')
    )
    assert "wu2025fastdllm" in run("strategies", "uncited", "--bibtex", *plugins).stdout
    misspelt = run("strategies", "citd", "--bibtex", *plugins)
    assert misspelt.returncode == 2
    assert "Did you mean 'cited'" in misspelt.stderr
    both = run("strategies", "cited", "--bibtex", "--json", *plugins)
    assert both.returncode == 2
    assert "not both" in both.stderr


def test_ids_are_those_of_the_sources_in_order():
    class Cites(CachePolicy):
        """As in arXiv:1111.11111."""

        name: ClassVar[str] = "cites"
        rule: ClassVar[str] = "none of arXiv:2222.22222."
        sources: ClassVar[tuple[Source, ...]] = (
            Source("one", openreview="ZsIQUjQtdW"),
            Source("another", "section 3", arxiv="2505.22618"),
            Source("ours"),
            Source("the other again", arxiv="2505.22618"),
            Source("a last one", arxiv="3333.33333"),
        )

        def plan_forward(self, state, region):
            return ForwardPlan.full(state)

    assert references.ids_of(Cites) == ["ZsIQUjQtdW", "2505.22618", "3333.33333"]
    with pytest.raises(ConfigurationError, match=r"no entry ships for 3333\.33333"):
        references.bibtex_of(Cites)
    assert [str(source) for source in Cites.sources[:3]] == [
        "one (openreview ZsIQUjQtdW)", "another (arXiv:2505.22618), section 3", "ours",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"what": "A", "arxiv": "arXiv:2505.22618"}, r"arxiv='arXiv:2505.22618' must be an id alone"),
        ({"what": "A", "arxiv": "2505.226188"}, "arxiv='2505.226188'"),
        ({"what": "A", "openreview": "forum?id=ZsIQUjQtdW"}, "openreview='forum"),
        ({"what": "A", "arxiv": "2505.22618", "openreview": "ZsIQUjQtdW"}, "not both"),
        ({"what": " "}, "must name the work"),
    ],
)
def test_a_source_that_cannot_be_cited_is_refused(given, said):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Source(**given)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"sources": "ours"}, "sources = 'ours' must be a tuple of Source"),
        ({"sources": (("Fast-dLLM", "2505.22618"),)}, "must be a tuple of Source"),
        ({"needs": "stored keys"}, "needs = 'stored keys' must be a tuple of str"),
        ({"rule": ("a", "b")}, "rule = ('a', 'b') must be a string"),
        ({"bibtex": None}, "bibtex = None must be a string"),
        ({"exact_with": {"intervall": 1}}, "Did you mean 'interval'?"),
    ],
)
def test_a_class_that_says_it_wrongly_is_refused(facts, said):
    body = {"__annotations__": dict.fromkeys(facts, "ClassVar"), "name": "wrong", **facts}
    with pytest.raises(TypeError, match=re.escape(said)):
        type(IntervalRefresh)("Wrong", (IntervalRefresh,), {"__module__": __name__, **body})


# Each a short file -----------------------------------------------------------------------------------


def code_lines(path):
    """Lines that are neither blank, comment, documentation nor import."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    left_out = documentation(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and i not in left_out and not line.strip().startswith("#") for i, line in lines
    )


@pytest.mark.parametrize("folder", ["strategies", "caches"])
def test_a_strategy_is_under_80_lines_of_code(folder):
    counts = {path.name: code_lines(path) for path in (ROOT / folder).rglob("*.py")}
    assert "__init__.py" in counts
    assert {name: n for name, n in counts.items() if n >= 80} == {}


def test_the_generator_is_a_command(tmp_path):
    copy = tmp_path / "docs"
    copy.mkdir()
    (copy / "gen_catalogue.py").write_text((ROOT / "docs" / "gen_catalogue.py").read_text())
    (copy / "catalogue").mkdir()
    (copy / "catalogue" / "gone.md").write_text("of a policy that is gone")
    done = subprocess.run(
        [sys.executable, str(copy / "gen_catalogue.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (copy / "catalogue").iterdir()} == set(catalogue.pages(None))
