"""Tasks: prompts with a checker. A local file and the evaluation harness ship as tasks."""

from dllm_sampling.tasks.base import Example, Task

__all__ = ["Example", "Task"]
