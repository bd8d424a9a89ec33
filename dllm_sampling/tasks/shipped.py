"""The tasks that take their examples from elsewhere, as a plugin."""

from dllm_sampling.tasks.base import Task
from dllm_sampling.tasks.file import FileTask
from dllm_sampling.tasks.harness import HarnessTask


def register_tasks() -> list[type[Task]]:
    """A local file, and a task of lm-evaluation-harness."""
    return [FileTask, HarnessTask]
