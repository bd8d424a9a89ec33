"""A local JSONL or Parquet file as a task."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from dllm_sampling.errors import ConfigurationError, StudyError, unknown_name
from dllm_sampling.tasks.base import Example, Task
from dllm_sampling.tasks.checkers import CHECKERS


class FileTask(Task):
    """One example a line of a .jsonl file, or a row of a .parquet file.

    Templates are Jinja's; they see the fields of the line. A template with an unknown field is an error.
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
        rows = _rows(Path(self.path))
        prompt, answer = _template("prompt", self.prompt), _template("answer", self.answer)
        found = []
        for number, row in enumerate(rows, 1):
            where = f"{self.path}, row {number}"
            found.append(Example(_filled(prompt, row, where), _filled(answer, row, where), row))
        return found

    def is_correct(self, text: str, example: Example) -> bool:
        if self.check not in CHECKERS:
            return self._other_task().is_correct(text, example)
        option = self.pattern or self.letters or "ABCD"
        return CHECKERS[self.check](text, example.answer, option)

    def scored_by(self) -> Task:
        return self if self.check in CHECKERS else self._other_task()

    def _other_task(self) -> Task:
        from dllm_sampling.plugins import registry

        tasks = registry().classes("task")
        if self.check not in tasks or tasks[self.check] is type(self):
            known = [*CHECKERS, *(name for name, task in tasks.items() if task is not type(self))]
            raise ConfigurationError(unknown_name("check", self.check, known))
        return registry().build(Task, self.check)  # type: ignore[type-abstract]  # builds a subclass


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigurationError(f"{path}: unknown ending {path.suffix!r}; known: .jsonl, .parquet.")
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file.")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{path}: not readable as Parquet: {error}") from None
        return found
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigurationError(f"{path}, line {number}: not an object.")
        rows.append(row)
    return rows


def _template(name: str, text: str) -> Any:
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError:
        raise StudyError("tasks from files need Jinja: pip install 'dllm-sampling[study]'") from None
    environment = jinja2.sandbox.SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ConfigurationError(f"{name} {text!r} is no template: {error}") from None


def _filled(template: Any, row: Mapping[str, Any], where: str) -> str:
    import jinja2

    try:
        return str(template.render(row))
    except jinja2.TemplateError as error:
        raise ConfigurationError(f"{where}: {error}; its fields: {', '.join(row)}.") from None
