"""What ships beside the strategies: the bundled model and its task, tasks from files, references, studies."""

from __future__ import annotations

from dllm_sampling.tasks import Task


def register() -> list[type[Task]]:
    """The held-out word problems, and the task that a local file makes."""
    from dllm_sampling.bundled.file_task import FileTask
    from dllm_sampling.bundled.word_problems import WordProblems

    return [FileTask, WordProblems]
