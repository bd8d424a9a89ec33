"""The held-out word problems as a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import ClassVar

from pydantic import Field

from dllm_sampling.tasks import Example, Task


class WordProblems(Task):
    """500 held-out problems; an answer is right when the number behind its last #### is."""

    name: ClassVar[str] = "word_problems"
    gen_length: int = Field(64, ge=1, description="Targets behind each prompt.")

    def examples(self) -> Sequence[Example]:
        lines = (files("dllm_sampling.bundled") / "word_problems.jsonl").read_text(encoding="utf-8")
        rows = (json.loads(line) for line in lines.splitlines())
        return [Example(row["question"], row["result"]) for row in rows]

    def is_correct(self, text: str, example: Example) -> bool:
        _, marker, result = text.rpartition("####")
        return bool(marker) and result.strip() == example.answer
