"""Where other programs meet a sampler: transformers' generate, and lm-evaluation-harness both ways."""

from __future__ import annotations

from dllm_sampling.tasks import Task


def register() -> list[type[Task]]:
    """A task of lm-evaluation-harness."""
    from dllm_sampling.integrations.lm_eval_task import HarnessTask

    return [HarnessTask]
