"""Text of others in every place of a study that shows text: whole, and shown rather than obeyed."""

from __future__ import annotations

import csv
import io
import os
import pty
import re
import threading
import xml.etree.ElementTree as ET
from contextlib import suppress
from html.parser import HTMLParser
from itertools import pairwise
from unittest.mock import patch

import pytest
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from dllm_sampling.errors import visible
from dllm_sampling.study import Results, metrics, plots, report, text
from tests.study_files import SMALL, finished, small

HOSTILE = (
    "=1+1 [/b] [red]x[/red] :smile: p $\\frac{$ x_1$ <script>alert(1)</script> & \"q' `c` **b** | \\n {{ 7*7 }} <<7>> "
    "% # ~ ^ \x1b]0;PWN\x07\x1b[2J\x9b31m \u202eevil\u202c \r\n2026-01-01 00:00:00,000 ERROR   forged -- --> 中文"
)
ESCAPED = text.one_line(HOSTILE)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def hostile_study(folder):
    """A study all of whose names, prompts and answers are hostile."""
    data = folder / "t.jsonl"
    data.write_text('{"q": "Mia has 2 pens. ", "a": ""}\n' * 2)
    task = {
        "name": "file", "label": "t" + HOSTILE, "path": str(data), "prompt": HOSTILE + "{{ q }}", "gen_length": 8,
        "answer": HOSTILE + "{{ a }}", "best_accuracy": 1.0,
    }  # fmt: skip
    task["prompt"] = "{{ q }}{% raw %}" + HOSTILE + "{% endraw %}"
    task["answer"] = "{% raw %}" + HOSTILE + "{% endraw %}"
    broken = {"name": "empty", "label": "e" + HOSTILE, "path": str(data), "prompt": "{{ a }}"}
    return {
        "name": HOSTILE,
        "description": HOSTILE,
        "baseline": HOSTILE,
        "models": [{"name": "m" + HOSTILE}],
        "tasks": [task, {**broken, "name": "file", "answer": "x", "gen_length": 8}],
        "samplers": [
            {"name": HOSTILE, "unmasking": {"name": "fixed_k", "k": 4}},
            {"name": "_" + HOSTILE, "cache": "dual"},
        ],
        "published": [
            {"task": "t" + HOSTILE, "sampler": HOSTILE, "accuracy": 0.5, "source": HOSTILE},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder, and the bytes that a terminal got."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "s.yaml").write_text(yaml.safe_dump(hostile_study(folder)))
    terminal, end = pty.openpty()
    shown = []

    def listen():
        with suppress(OSError):
            while found := os.read(terminal, 1 << 16):
                shown.append(found)

    listener = threading.Thread(target=listen)
    listener.start()
    with os.fdopen(end, "w", encoding="utf-8") as stream, patch.dict(os.environ, {"TERM": "xterm"}):
        code, _, _ = finished("compare", folder / "s.yaml", "--output", folder / "out", stream=stream)
    listener.join()
    os.close(terminal)
    shown = b"".join(shown)
    assert code == 1, shown.decode()  # the task of empty prompts failed
    return folder / "out", shown.decode()


def test_on_a_terminal(ran):
    shown = ran[1]
    for obeyed in ("\x1b]0;", "\x07", "\x1b[2J\x9b", "\x9b", "\u202e"):
        assert obeyed not in shown
    lines = shown.replace("\r\n", "\n").splitlines()
    table = [line for line in lines if line.startswith((ESCAPED, "_" + ESCAPED))]
    assert len(table) == 2
    assert any(line.startswith(f"m{ESCAPED}, t{ESCAPED}: 2 prompts") for line in lines)
    assert any("failed: " in line and f"e{ESCAPED}" in line and "row 1 of 2" in line for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)


def test_in_a_pipe_it_is_left_as_it_is(ran):
    code, out, _ = finished("report", ran[0])
    assert code == 0
    unbroken = HOSTILE.replace("\r\n", "\\r\\n")
    assert sum(line.startswith(("_" + unbroken, unbroken)) for line in out.split("\n")) == 2


def test_in_the_log(ran):
    log = (ran[0] / "log.txt").read_text()
    assert not CONTROL.search(log)
    assert ESCAPED in log
    lines = log.splitlines()
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|ERROR)|    ", line) for line in lines)


class Words(HTMLParser):
    """The text of a page, and the tags in it."""

    def __init__(self):
        super().__init__()
        self.words, self.tags, self.comments = [], [], []

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.words += [value or "" for _, value in attrs]

    def handle_comment(self, data):
        self.comments.append(data)


def test_in_html(ran):
    page = (ran[0] / "report.html").read_bytes().decode()
    found = Words()
    found.feed(page)
    words = "".join(found.words)
    assert found.tags.count("script") == 1
    assert not CONTROL.search(page)
    shown = visible(HOSTILE)
    assert words.count(shown) >= 10
    assert "{{ 7*7 }}" in words


def test_in_markdown(ran):
    source = (ran[0] / "report.md").read_text()
    assert not CONTROL.search(source)
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(source)
    found = Words()
    found.feed(page)
    words = "".join(found.words)
    assert words.count(ESCAPED) >= 6
    assert "script" not in found.tags
    assert "code" not in found.tags
    tables = [line for line in source.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in tables[:4]}) == 1


def test_in_latex(ran):
    source = (ran[0] / "report.tex").read_text()
    assert not CONTROL.search(source)
    assert text.latex(HOSTILE) in source
    bare = re.sub(r"\\text\w+\{\}|\\[{}$&#%_,\\]", "", text.latex(HOSTILE)).replace("-{}", "")
    bare = re.sub(r"\{[\[\]*]\}", "", bare)
    assert not re.search(r"[\\{}$&#%_^~<>|]", bare)


def test_in_csv(ran):
    with (ran[0] / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sampler"] for row in rows] == ["'" + HOSTILE, "_" + HOSTILE]
    assert rows[0]["published_source"] == "'" + HOSTILE
    for name in ("results.csv", "curves.csv"):
        with (ran[0] / name).open(newline="") as file:
            for row in csv.reader(file):
                assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in row)


def test_in_plots(ran):
    drawn = sorted((ran[0] / "plots").iterdir())
    assert len(drawn) == 6
    for path in drawn:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
            continue
        picture = path.read_text()
        ET.fromstring(picture)  # it is XML, so no control character stands in it
        assert "<script" not in picture
        assert path.stem.endswith("pareto") or "[red]x[/red]" in picture  # a comment beside its outlines


def test_formulas_in_names_are_letters_in_plots(results):
    found = renamed(results.folder, [r"$\alpha$", r"$\frac{$", "a", "_b", "t", "m"])
    picture = plots.svg(plots._drawn(plots._time, found.rows))
    outlines = re.search(r"<!-- \$\\alpha\$ -->(.*?)</g>\s*</g>", picture, re.DOTALL)[1]
    assert outlines.count("<use ") == len(r"$\alpha$")
    legend = plots._drawn(plots._pareto, found.rows, found.curves).axes[0].get_legend()
    assert [t.get_text() for t in legend.get_texts()][-2:] == ["_b", "Pareto front"]


# Any names ------------------------------------------------------------------------------------------------

ODD = ["a [/b]", "cache [dual]", r"p $\frac{$ x", "$x$", "<b>", "=1+1", "+x", "-x", "@x", "a|b", "`", "\n", "\x1b[2J", "\ud83d", "_x",
       "\u202e", "x" * 3000, "1. a", "# a", "---", "\\", "{}", "%s", "{0}", "%", "nan", "inf", "1", "中", "\0", "'", '"', " ", "\t"]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(ODD),
    st.text(alphabet=st.characters(codec=None), min_size=1, max_size=30),
    st.lists(st.sampled_from(ODD), min_size=2, max_size=4).map("".join),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    samplers = [*SMALL["samplers"], {"name": "alone", "unmasking": "factor"}]
    return small(2, samplers=samplers, gen_length=8).run(tmp_path_factory.mktemp("names"))


def renamed(folder, names):
    """The same results under other names, as the manifest of a study of these names holds them."""
    found = Results(folder)
    new = dict(
        zip(
            ("one at a time", "threshold 0.5", "threshold 0.9", "alone", "word_problems", "bundled"),
            names,
            strict=True,
        )
    )
    for cell in found.manifest["cells"]:
        cell |= {key: new[cell[key]] for key in ("sampler", "task", "model")}
    found.study["baseline"] = new["one at a time"]
    found.study["name"] = found.study["description"] = names[0]
    found.study["tasks"][0]["name"] = new["word_problems"]
    return found


@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])  # a report takes seconds
@given(st.lists(NAMES, min_size=6, max_size=6, unique=True))
@example(["=1+1", "\ud83d", "_x", "x" * 3000, "\n", "\x1b[2J"])
def test_a_report_is_written_whatever_the_names_are(results, names):
    check_report(results, names)


def check_report(results, names):
    """Rendering, and what must hold of the files it makes."""
    before = metrics.RESAMPLES
    metrics.RESAMPLES = 49
    try:
        found = renamed(results.folder, names)
        folder = results.folder.path / "again"
        report.write(found, folder)
    finally:
        metrics.RESAMPLES = before
    page = (folder / "report.html").read_bytes().decode()
    words = Words()
    words.feed(page)
    assert words.tags.count("script") == 1
    assert not CONTROL.search(page)
    everything = "".join(words.words)
    markdown = (folder / "report.md").read_bytes().decode()
    for name in names:
        assert visible(name) in everything
        assert text.markdown(name) in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("| ")]
    widths = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in tables[:5]]
    assert all(a == b for a, b in pairwise(widths))
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_bytes().decode(), newline="")))
    assert [row["sampler"].removeprefix("'") for row in rows] == [
        row.sampler.encode("utf-8", "backslashreplace").decode().removeprefix("'") for row in found.rows
    ]
    for path in (folder / "plots").glob("*.svg"):
        ET.fromstring(path.read_text())
