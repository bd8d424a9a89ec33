"""A local JSONL or Parquet file as a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from dllm_sampling.errors import ConfigurationError, shown, unknown_name
from dllm_sampling.inputs.text_files import json_lines, read_text
from dllm_sampling.tasks.base import Example, Task
from dllm_sampling.tasks.checkers import CHECKERS
from dllm_sampling.tasks.templates import Template


class FileTask(Task):
    """One example a line of a .jsonl file (UTF-8), or a row of a .parquet file.

    Templates are Jinja's; they see the fields of the row, and the row itself as `row`, for fields whose names
    are no identifiers: `{{ row['my question'] }}`. Where a field is named row, `row` is that field. Text is
    printed as it is, any other value as JSON writes it: 5, 0.5, true, ["a", "b"]. A field that the row does
    not have is an error, and so is printing one that is null, NaN or infinite (`{{ hint | default('') }}`
    takes null as missing).
    """

    name: ClassVar[str] = "file"
    path: str = Field(description="The .jsonl or .parquet file.")
    prompt: str = Field(description="Template of the prompt, such as `Question: {{ question }}`.")
    answer: str = Field("{{ answer }}", description="Template of the right answer.")
    check: str = Field(
        "exact",
        description="exact, regex, last_number, multiple_choice, or the name of a task whose checker it is.",
    )
    pattern: str | None = Field(None, description="Of regex: its last match, first group, is the answer.")
    letters: str | None = Field(None, description="Of multiple_choice: the letters, ABCD without it.")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        for name, value, owner in (
            ("pattern", self.pattern, "regex"),
            ("letters", self.letters, "multiple_choice"),
        ):
            if value is not None and self.check != owner:
                raise ValueError(f"{name} has no effect with check={self.check!r}, only with {owner!r}")
        if self.check == "regex":
            if self.pattern is None:
                raise ValueError("check='regex' needs a pattern")
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r}: {error}") from None
        if self.check not in CHECKERS:
            self._other_task()
        return self

    def examples(self) -> Sequence[Example]:
        rows = list(_rows(Path(self.path)))
        prompt, answer = Template("prompt", self.prompt), Template("answer", self.answer)
        found = []
        for place, row in rows:
            where = f"{self.path}, {place}"
            found.append(Example(prompt.fill(row, where), answer.fill(row, where), row))
            self._refuse_hopeless(found[-1].answer, where)
        return found

    def _refuse_hopeless(self, answer: str, where: str) -> None:
        """Raise ConfigurationError for an answer that no text could ever give."""
        if self.check in ("last_number", "multiple_choice") and not CHECKERS[self.check](
            answer, answer, self._option
        ):
            raise ConfigurationError(
                f"{where}: the answer {shown(answer)} can never be right with check={self.check!r}."
            )

    def is_correct(self, text: str, example: Example) -> bool:
        if self.check not in CHECKERS:
            return self._other_task().is_correct(text, example)
        return CHECKERS[self.check](text, example.answer, self._option)

    @property
    def _option(self) -> str:
        return self.pattern or self.letters or "ABCD"

    def scored_by(self) -> Task:
        return self if self.check in CHECKERS else self._other_task()

    def _other_task(self) -> Task:
        from dllm_sampling.plugins.discovery import registry

        tasks = registry().classes("task")
        if self.check not in tasks or tasks[self.check] is type(self):
            known = [*CHECKERS, *(name for name, task in tasks.items() if task is not type(self))]
            raise ConfigurationError(unknown_name("check", self.check, known))
        return registry().build(Task, self.check)  # type: ignore[type-abstract]  # builds a subclass


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each with its place."""
    ending = path.suffix.lower()
    if ending not in (".jsonl", ".parquet"):
        raise ConfigurationError(f"{path}: unknown ending {path.suffix!r}; known: .jsonl, .parquet.")
    if path.is_dir():
        raise ConfigurationError(f"{path}: is a folder, not a file.")
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file.")
    if ending == ".parquet":
        for number, row in enumerate(_parquet(path), 1):
            yield f"row {number}", row
        return
    values = json_lines(read_text(path, ConfigurationError), str(path), ConfigurationError)
    for number, (line, row) in enumerate(values, 1):
        if not isinstance(row, dict):
            raise ConfigurationError(f"{path}, line {line}: not an object.")
        yield f"row {number}" if line == number else f"line {line}, row {number}", row


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Read as one file: as a data set, folders named a=1 would add columns.
        table = pq.ParquetFile(path).read()
        twice = [name for name in table.column_names if table.column_names.count(name) > 1]
        found: list[dict[str, Any]] = [] if twice else table.to_pylist()
    except (OSError, ValueError, ArithmeticError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path}: not readable as Parquet: {error}") from None
    if twice:
        raise ConfigurationError(f"{path}: has the column {twice[0]!r} twice.")
    return found
