"""Tasks: prompts with a checker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Example:
    """One prompt and what a right answer to it is."""

    prompt: str
    answer: str


class Task(ABC):
    """Examples and how an answer is checked. Plugins offer subclasses."""

    name: ClassVar[str]
    gen_length: ClassVar[int]

    @abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, always in the same order."""

    @abstractmethod
    def is_correct(self, text: str, example: Example) -> bool:
        """Whether a generated text answers the example."""
