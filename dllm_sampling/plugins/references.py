"""BibTeX entries of the sources that policies name."""

from __future__ import annotations

import functools
import inspect
import re
from importlib.resources import files

from dllm_sampling.errors import ConfigurationError
from dllm_sampling.policies.kinds import Policy

_IN_ENTRY = re.compile(r"eprint = \{(.+?)\}|forum\?id=([\w-]{10})")


def bibtex_of(policy: type[Policy]) -> str:
    """The entries of what a policy builds on, in the order of its sources.

    Args:
        policy: The class.

    Returns:
        Its own `bibtex`, where it has one, or else the entries that ship for the ids in its `sources`.

    Raises:
        ConfigurationError: Neither is known; the error says what to add.
    """
    if policy.bibtex.strip():
        return inspect.cleandoc(policy.bibtex)
    ids, own = ids_of(policy), "`bibtex: ClassVar[str] = ...`"
    if not ids:
        raise ConfigurationError(
            f"{policy.name}: no source with an id is known. Give {policy.__name__} one, "
            '`sources: ClassVar[tuple[Source, ...]] = (Source("Fast-dLLM", arxiv="2505.22618"),)`, '
            f"or an entry of its own, {own}."
        )
    known = shipped()
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise ConfigurationError(
            f"{policy.name}: no entry ships for {', '.join(unknown)}. Give {policy.__name__} its own: {own}."
        )
    return "\n\n".join(known[i] for i in ids)


def ids_of(policy: type[Policy]) -> list[str]:
    """The arXiv and openreview ids of a policy's sources, each once, in order."""
    return list(dict.fromkeys(source.id for source in policy.sources if source.id))


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
