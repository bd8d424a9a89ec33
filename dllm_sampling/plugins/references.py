"""BibTeX entries of the sources that policies name in their docstrings."""

from __future__ import annotations

import functools
import inspect
import re
from importlib.resources import files

from dllm_sampling.errors import ConfigurationError

_ARXIV = re.compile(r"arXiv:\s*(\d{4}\.\d{4,5})", re.IGNORECASE)
_OPENREVIEW = re.compile(r"openreview(?:\.net/forum\?id=|\s+)(\w{10})", re.IGNORECASE)
_IN_ENTRY = re.compile(r"eprint = \{(.+?)\}|forum\?id=(\w{10})")


def bibtex_of(policy: type) -> str:
    """The entries of what `policy` builds on, in the order of its docstring.

    They are its own `bibtex`, where it has one, or else those that ship for the arXiv and openreview ids
    behind `Source:` in its docstring. A ConfigurationError says what to add where neither is known.
    """
    own = getattr(policy, "bibtex", None)
    if isinstance(own, str) and own.strip():
        return inspect.cleandoc(own)
    name = getattr(policy, "name", policy.__name__)
    ids = ids_of(policy)
    if not ids:
        raise ConfigurationError(
            f"{name}: no source is known. Name an arXiv or openreview id behind `Source:` in the docstring "
            f"of {policy.__name__}, or give the class its own entry: `bibtex: ClassVar[str] = ...`."
        )
    known = shipped()
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise ConfigurationError(
            f"{name}: no entry ships for {', '.join(unknown)}. Give {policy.__name__} its own: "
            "`bibtex: ClassVar[str] = ...`."
        )
    return "\n\n".join(known[i] for i in ids)


def ids_of(policy: type) -> list[str]:
    """The arXiv and openreview ids behind `Source:` in a docstring, each once, in order."""
    source = section(inspect.getdoc(policy) or "", "Source")
    found = [(m.start(), m[1]) for pattern in (_ARXIV, _OPENREVIEW) for m in pattern.finditer(source)]
    return list(dict.fromkeys(i for _, i in sorted(found)))


def section(doc: str, title: str) -> str:
    """What stands behind `title:` in a docstring, up to the next such title; empty where it is not there."""
    found = re.search(rf"\b{title}:\s+(.*?)(?=\s+(?:Rule|Source):\s|\Z)", doc, re.DOTALL)
    return found[1].strip() if found else ""


@functools.cache
def shipped() -> dict[str, str]:
    """Every entry that ships, by arXiv or openreview id."""
    text = (files("dllm_sampling") / "bundled" / "references.bib").read_text(encoding="utf-8")
    entries = {}
    for entry in re.findall(r"^@.*?^\}", text, re.DOTALL | re.MULTILINE):
        found = _IN_ENTRY.search(entry)
        if found is None:
            raise ValueError(f"an entry of references.bib has neither eprint nor openreview id: {entry}")
        entries[found[1] or found[2]] = entry
    return entries
