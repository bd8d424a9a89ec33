"""The bundled model and its task: word problems with worked answers."""

from __future__ import annotations

from dllm_sampling.tasks import Task


def register_tasks() -> list[type[Task]]:
    """The held-out word problems."""
    from dllm_sampling.bundled.word_problems import WordProblems

    return [WordProblems]
