"""Tasks: prompts with a checker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from dllm_sampling.policies.named import Named


@dataclass(frozen=True)
class Example:
    """One prompt with its answer.

    Attributes:
        prompt: A string, or the messages of a chat.
        answer: The right answer.
        data: What else the checker needs.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    answer: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Task(Named, ABC):
    """Examples and how an answer is checked. Plugins offer subclasses; fields are parameters.

    Attributes:
        gen_length: Targets behind each prompt.
        chat_template: Whether string prompts become chat messages.
    """

    kind: ClassVar[str] = "task"
    gen_length: int = Field(256, ge=1, description="Targets behind each prompt.")
    chat_template: bool = Field(True, description="Whether string prompts become chat messages.")

    @abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, always in the same order."""

    @abstractmethod
    def is_correct(self, text: str, example: Example) -> bool:
        """Whether a generated text answers an example.

        Args:
            text: What was written.
            example: What was asked.

        Returns:
            True for a right answer.
        """

    def scored_by(self) -> Task:
        """The task whose code `is_correct` runs: by default this one. What it is decides the scores."""
        return self
