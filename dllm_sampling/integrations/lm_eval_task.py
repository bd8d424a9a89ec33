"""A task of EleutherAI's lm-evaluation-harness as a task of ours."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from dllm_sampling.errors import ConfigurationError, StudyError, unknown_name
from dllm_sampling.integrations import lm_eval_settings as generation_settings
from dllm_sampling.integrations.lm_eval_settings import before_stops
from dllm_sampling.tasks.base import Example, Task


class HarnessTask(Task):
    """Prompts, few-shot examples, stop strings, filters and metric of a `generate_until` task.

    Prompts and scores are the harness's own, so a number here is its number. How many tokens are written
    and how they are sampled is the study's: gen_length and the samplers, whatever the task says of
    max_gen_toks, do_sample, temperature, top_p and top_k. Any other generation setting that a sampler
    cannot honour (num_beams, penalties) is refused. A group's tasks follow one another; every answer
    counts alike.
    """

    name: ClassVar[str] = "harness"
    task: str = Field(description="The name of a task, group or tag of the harness.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Examples in the prompt; the task's own without it."
    )
    fewshot_seed: int = Field(1234, description="Of their choice; the harness's default.")
    metric: str | None = Field(None, description="A metric that is 0 or 1; the task's first without it.")
    filter: str | None = Field(None, description="Which of the task's filters; its first without it.")
    include_path: str | None = Field(None, description="A folder with further task definitions.")
    unsafe_code: bool = Field(False, description="Allow tasks that run the code a model wrote.")

    def examples(self) -> Sequence[Example]:
        found = []
        for name, task in _loaded(self).items():
            task.set_fewshot_seed(seed=self.fewshot_seed)  # every call draws the same few-shot examples
            task.build_all_requests()
            for instance in task.instances:
                prompt, settings = instance.args
                generation_settings.check(settings)
                data = {"part": name, "doc_id": instance.doc_id, "until": settings.get("until")}
                found.append(Example(prompt, str(task.doc_to_target(instance.doc)), data))
        return found

    def is_correct(self, text: str, example: Example) -> bool:
        from lm_eval.api.instance import Instance

        part, doc_id = example.data["part"], example.data["doc_id"]
        task = _loaded(self)[part]
        doc = task.eval_docs[doc_id]
        text = before_stops(text, example.data["until"])
        instance = Instance(
            request_type="generate_until",
            doc=doc,
            arguments=(example.prompt, {}),
            idx=0,
            metadata=(part, doc_id, 1),
            resps=[text],
        )
        for ensemble in task._filters:
            ensemble.apply([instance])
        chosen = self.filter or task._filters[0].name
        if chosen not in instance.filtered_resps:
            raise ConfigurationError(unknown_name("filter", chosen, instance.filtered_resps))
        scores = task.process_results(doc, [instance.filtered_resps[chosen]])
        metric = self.metric or next(iter(scores))
        if metric not in scores:
            raise ConfigurationError(unknown_name("metric", metric, scores))
        score = scores[metric]
        if score not in (0, 1):
            raise ConfigurationError(
                f"task {part!r}: metric {metric!r} is {score!r}; a study needs one that is 0 or 1, of "
                f"{', '.join(sorted(scores))}."
            )
        return bool(score)


@functools.lru_cache(maxsize=16)
def _loaded(settings: HarnessTask) -> dict[str, Any]:
    """The tasks by name, in the order of their names."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise StudyError("tasks of the harness need lm-eval: pip install 'dllm-sampling[harness]'") from None
    if settings.unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the harness's code metrics ask for
    manager = TaskManager(include_path=settings.include_path)
    if settings.task not in manager.all_tasks:
        raise ConfigurationError(unknown_name("task of the harness", settings.task, manager.all_tasks))
    try:
        found = manager.load([settings.task])["tasks"]
    except Exception as error:
        raise ConfigurationError(
            f"the harness could not load {settings.task!r}: {type(error).__name__}: {error}"
        ) from error
    for name, task in found.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise ConfigurationError(
                f"{name!r} is a {task.OUTPUT_TYPE} task; a sampler can only run generate_until tasks."
            )
        if getattr(task.config, "unsafe_code", False) and not settings.unsafe_code:
            raise ConfigurationError(
                f"{name!r} runs code that the model wrote: set unsafe_code: true, where that is safe."
            )
        if settings.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=settings.num_fewshot)
    return dict(sorted(found.items()))
