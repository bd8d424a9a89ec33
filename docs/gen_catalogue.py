"""Write docs/catalogue from the code: `python docs/gen_catalogue.py`.

One page for each policy that ships and a table of them all. Everything on a page is the docstring, the facts,
the fields and the BibTeX entries of the class, and its rows in docs/examples/catalogue.json where there are
any.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dllm_sampling.cli.listing import type_name
from dllm_sampling.plugins.discovery import load
from dllm_sampling.plugins.references import bibtex_of
from dllm_sampling.plugins.registry import KIND_TITLES
from dllm_sampling.policies.kinds import KINDS, CachePolicy, Policy
from dllm_sampling.policies.source import Source

DOCS = Path(__file__).parent
FOLDER = DOCS / "catalogue"
STUDY = DOCS / "examples" / "catalogue.json"
BASELINE = "confidence_threshold"
# Each measure: its key, its title, and how it is written. More is better.
MEASURES = (
    ("accuracy", "accuracy", lambda x: f"{100 * x:.1f} %"),
    ("tokens_per_forward", "tokens a forward", lambda x: f"{x:.2f}"),
    ("speedup", "speed-up", lambda x: f"{x:.2f}x"),
)


def shipped() -> dict[str, type[Policy]]:
    """Every policy that ships, by name; installed plugins of others are left out."""
    source = load("strategies,caches", strict=True)
    return {name: cls for kind in KINDS for name, cls in source.classes(kind.kind).items()}


def pages(study: dict[str, Any] | None) -> dict[str, str]:
    """What each file of the catalogue holds, by file name."""
    policies = shipped()
    written = {f"{name}.md": _page(cls, study) for name, cls in policies.items()}
    return {"index.md": _index(policies), **written}


def recorded() -> dict[str, Any] | None:
    """The samplers of the study of the whole catalogue, where it was run."""
    if not STUDY.is_file():
        return None
    samplers: dict[str, Any] = json.loads(STUDY.read_text(encoding="utf-8"))["samplers"]
    return samplers


def summary_and_body(cls: type[Policy]) -> tuple[str, str]:
    """The first paragraph of a docstring, and the rest; a blank line stands between the paragraphs of it."""
    summary, *body = [_joined(text) for text in (inspect.getdoc(cls) or "").split("\n\n")]
    return summary, "\n\n".join(body)


def _joined(text: str) -> str:
    return " ".join(text.split())


def _index(policies: dict[str, type[Policy]]) -> str:
    lines = [
        "# Catalogue",
        "",
        "Every policy that ships. `dllm-sampling strategies NAME` shows one, with `--bibtex` what to cite.",
        "",
        "| name | kind | what it does | source |",
        "|---|---|---|---|",
    ]
    for name, cls in policies.items():
        links = ", ".join(f"[{source.id}]({source.url})" for source in cls.sources if source.id)
        title = KIND_TITLES[cls.kind]
        summary, _ = summary_and_body(cls)
        lines.append(f"| [`{name}`]({name}.md) | {title} | {_cell(summary)} | {links} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _page(cls: type[Policy], study: dict[str, Any] | None) -> str:
    summary, body = summary_and_body(cls)
    blocks = [
        "<!-- Written by docs/gen_catalogue.py; do not edit. -->",
        f"# `{cls.name}`",
        f"{KIND_TITLES[cls.kind].capitalize()}. {summary}",
        body,
        "## Rule",
        _fenced("text", cls.rule),
        "## Parameters",
        _parameters(cls),
        "## What it needs from the engine",
        _list(cls.needs) or "Nothing.",
        *_exactness(cls),
        *_in_the_study(cls.name, study),
        "## Sources",
        _list([_linked(source) for source in cls.sources]),
        _fenced("bibtex", bibtex_of(cls)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {_capital(text)}" for text in texts)


def _linked(source: Source) -> str:
    text = str(source)
    return text.replace(source.label, f"[{source.label}]({source.url})", 1) if source.id else text


def _exactness(cls: type[Policy]) -> list[str]:
    """Whether a cache policy decodes to the same tokens as `none`."""
    if not issubclass(cls, CachePolicy):
        return []
    said = "No: its tokens may differ from those of [`none`](none.md)."
    if cls.exact_with is not None:
        settings = ", ".join(f"`{field}` {value}" for field, value in cls.exact_with.items())
        said = f"With {settings}: " if settings else "Yes: "
        said += "it decodes to the same tokens as [`none`](none.md)."
    return ["## Is it exact?", said]


def _capital(text: str) -> str:
    """With a capital at its start, where that is a word and not a name such as dInfer."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+\b", text) else text


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _parameters(cls: type[Policy]) -> str:
    if not cls.model_fields:
        return "None."
    properties = cls.model_json_schema()["properties"]
    lines = ["| parameter | type | default | what it is |", "|---|---|---|---|"]
    for name, info in cls.model_fields.items():
        kind = type_name(properties[name]).replace(" | ", " or ").replace("null", "none")
        default = "required" if info.is_required() else f"`{info.default}`".replace("`None`", "none")
        lines.append(f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(info.description or '')} |")
    return "\n".join(lines)


def _in_the_study(name: str, study: dict[str, Any] | None) -> list[str]:
    """Rows of the study of the whole catalogue, and whether they are worse than the plain threshold."""
    rows = {label: row for label, row in (study or {}).items() if row["policy"] == name}
    if study is None or not rows:
        return []
    table = ["| sampler | right | tokens a forward | speed-up |", "|---|---|---|---|"]
    for label, row in rows.items():
        cells = " | ".join(_shown(row, key, write) for key, _, write in MEASURES)
        table.append(f"| {_cell(label)} | {cells} |")
    base = _baseline(study)
    verdicts = []
    if base is not None and name != BASELINE:
        verdicts = [f"- {_cell(label)}: {verdict(row, base)}" for label, row in rows.items()]
    return [
        "## In the study of the whole catalogue",
        "On the bundled word problems, with 95 % intervals; [the whole study](../examples/catalogue.md)."
        if (STUDY.parent / "catalogue.md").is_file()
        else "On the bundled word problems, with 95 % intervals.",
        "\n".join(table),
        "\n".join(verdicts),
    ]


def _baseline(study: dict[str, Any]) -> dict[str, Any] | None:
    rows = [row for row in study.values() if row["policy"] == BASELINE]
    row: dict[str, Any] | None = study.get(BASELINE) or (rows[0] if rows else None)
    return row


def _shown(row: dict[str, Any], key: str, write: Any) -> str:
    if row.get(key) is None:
        return ""
    bounds = row.get(f"{key}_interval")
    return write(row[key]) + (f" [{write(bounds[0])}, {write(bounds[1])}]" if bounds else "")


def verdict(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Where a row of the study is worse than the plain threshold, and where it is better."""
    below, above = [], []
    for key, title, write in MEASURES:
        mine, theirs = row.get(key), base.get(key)
        if mine is None or theirs is None or write(mine) == write(theirs):
            continue
        said = f"{title} {write(mine)} against {write(theirs)}{_overlap(row, base, key)}"
        (below if mine < theirs else above).append(said)
    if below:
        better = f" Better: {'; '.join(above)}." if above else ""
        return f"**worse than `{BASELINE}`**: {'; '.join(below)}.{better}"
    return f"better than `{BASELINE}`: {'; '.join(above)}." if above else f"as `{BASELINE}`."


def _overlap(row: dict[str, Any], base: dict[str, Any], key: str) -> str:
    mine, theirs = row.get(f"{key}_interval"), base.get(f"{key}_interval")
    if not mine or not theirs or mine[1] < theirs[0] or theirs[1] < mine[0]:
        return ""
    return " (intervals overlap)"


def main() -> None:
    """Write every page, and remove those of policies that are gone."""
    FOLDER.mkdir(exist_ok=True)
    written = pages(recorded())
    for old in FOLDER.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
