"""The work of `frequencies`: how often each token stands in some texts, for `pc_sampler`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dllm_sampling.cli.terminal import tell
from dllm_sampling.errors import ConfigurationError, DllmSamplingError
from dllm_sampling.inputs.messages import refuse_lone_surrogates
from dllm_sampling.inputs.text_files import json_lines, read_text
from dllm_sampling.loading.checkpoint import load_tokenizer
from dllm_sampling.plugins.blame import Blame
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.tasks import Task


def count(sources: Sequence[str], model: str | None, output: Path) -> None:
    """Count the tokens of every source and write the table whole or not at all."""
    if not output.name:
        raise ConfigurationError(f"--output {str(output)!r} names no file.")
    tokenizer = load_tokenizer(model)
    counts: Counter[int] = Counter()
    for source in sources:
        for text in _texts(source):
            refuse_lone_surrogates(text, source)
            counts.update(tokenizer(text, add_special_tokens=False)["input_ids"])
    total = sum(counts.values())
    if total == 0:
        raise ConfigurationError(f"{', '.join(sources)}: no text in it.")
    table = {"num_token": total, "p_baseline_dict": {str(k): v for k, v in sorted(counts.items())}}
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.write_text(json.dumps(table) + "\n", encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DllmSamplingError(f"{output}: {error.strerror or error}.") from None
    tell(f"{total} tokens, {len(counts)} different ones: {output}")


def _texts(source: str) -> Iterator[str]:
    """The texts of a file (its lines, or the strings of JSON lines) or of an installed task."""
    path = Path(source)
    if path.is_file():
        text = read_text(path, ConfigurationError)
        if path.suffix.lower() != ".jsonl":
            yield from text.split("\n")
        else:
            for _, value in json_lines(text, str(path), ConfigurationError):
                yield from _strings(value)
        return
    tasks = registry().classes("task")
    if source not in tasks:
        raise ConfigurationError(
            f"{source!r} is neither a file nor an installed task; tasks: {', '.join(tasks) or 'none'}."
        )
    task: Task = registry().build(tasks[source], source)
    with Blame(f"{type(task).__name__}.examples", task.examples):
        examples = list(task.examples())
    for example in examples:
        yield from _strings(example.prompt)
        yield example.answer


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)
