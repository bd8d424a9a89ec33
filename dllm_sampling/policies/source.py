"""Where a policy comes from, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dllm_sampling.errors import ConfigurationError

_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_OPENREVIEW = re.compile(r"[\w-]{10}")


@dataclass(frozen=True)
class Source:
    """One work that a policy builds on, or `Source("ours")`.

    `str(source)` reads "Fast-dLLM (arXiv:2505.22618), section 3.3".

    Attributes:
        what: The work, or what is taken from it, such as "Fast-dLLM" or "the reloading step of dKV-Cache".
        detail: What else to say: the section, the published values, where code and paper differ.
        arxiv: Its arXiv id alone, such as "2505.22618".
        openreview: Its id on openreview.net, such as "ZsIQUjQtdW", for what is not on arXiv.

    Raises:
        ConfigurationError: The work has no name, an id is none, or both ids are given.
    """

    what: str
    detail: str = ""
    arxiv: str = ""
    openreview: str = ""

    def __post_init__(self) -> None:
        if not self.what.strip():
            raise ConfigurationError("what='' must name the work that a policy builds on, or be 'ours'.")
        if self.arxiv and not _ARXIV.fullmatch(self.arxiv):
            raise ConfigurationError(f"arxiv={self.arxiv!r} must be an id alone, such as '2505.22618'.")
        if self.openreview and not _OPENREVIEW.fullmatch(self.openreview):
            raise ConfigurationError(
                f"openreview={self.openreview!r} must be an id alone, such as 'ZsIQUjQtdW'."
            )
        if self.arxiv and self.openreview:
            raise ConfigurationError(
                f"give arxiv or openreview, not both (arxiv={self.arxiv!r}, openreview={self.openreview!r})."
            )

    @property
    def id(self) -> str:
        """Its arXiv or openreview id; empty where it has none."""
        return self.arxiv or self.openreview

    @property
    def url(self) -> str:
        """Its page; empty where it has no id."""
        if self.openreview:
            return f"https://openreview.net/forum?id={self.openreview}"
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def label(self) -> str:
        """Its id as papers write it: "arXiv:2505.22618"; empty where it has none."""
        if self.openreview:
            return f"openreview {self.openreview}"
        return f"arXiv:{self.arxiv}" if self.arxiv else ""

    def __str__(self) -> str:
        named = f"{self.what} ({self.label})" if self.label else self.what
        return f"{named}, {self.detail}" if self.detail else named
