"""The cells of a study, what identifies them, and the batches they are run in."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from dllm_sampling.config.run_config import RunConfig
from dllm_sampling.errors import ConfigurationError, unknown_name
from dllm_sampling.study import provenance
from dllm_sampling.study.code import code_of, digest, engine_code, with_contents
from dllm_sampling.study.config import StudyConfig
from dllm_sampling.study.records import SCHEMA_VERSION
from dllm_sampling.tasks import Example, Task


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """One sampler on one task with one model and one seed: what a manifest says of it as plain data.

    id: a hash of all that determines the texts: the run with the content of the files it reads, the
        prompts, the checkpoint's files, the code of engine and policies, and the versions below them.
        Names are no part of it, nor is where a file lies.
    checker_id: a hash of all that determines their scores: the answers, the checker and its code. Where
        it alone changes, the texts on record are scored again.
    """

    id: str
    checker_id: str
    model: str
    task: str
    sampler: str
    seed: int
    source: int
    point: dict[str, Any]
    examples: int
    examples_id: str


@dataclass(frozen=True, kw_only=True)
class Cell(CellFacts):
    """A cell that can be run: with its run and its checker."""

    run: RunConfig
    checker: Task

    @property
    def title(self) -> str:
        """model / task / sampler / seed."""
        return f"{self.model} / {self.task} / {self.sampler} / seed {self.seed}"

    @property
    def batches(self) -> int:
        """Batches it is run in."""
        return -(-self.examples // self.run.sampler.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for the manifest."""
        return {
            **{fact.name: getattr(self, fact.name) for fact in fields(CellFacts)},
            "batches": self.batches,
            "run": self.run.to_dict(),
            "checker": self.checker.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Unit:
    """One batch of one cell: what is computed, written and lost as a whole."""

    cell: Cell
    batch: int


def cells_of(study: StudyConfig, examples: dict[str, Sequence[Example]]) -> list[Cell]:
    """Every cell, in the order of the file. `examples`: those of each task by its name."""
    tasks = {entry.name: _of_task(entry.task, examples[entry.name]) for entry in study.tasks}
    versions = provenance.versions()
    shared = {
        "schema": SCHEMA_VERSION,
        "engine": engine_code(),
        "versions": {name: versions[name] for name in ("torch", "transformers", "tokenizers")},
    }
    cells: list[Cell] = []
    records_of: dict[str, dict[str, str]] = {}
    for model in study.models:
        checkpoint = provenance.checkpoint_hash(model.settings)
        for task in study.tasks:
            ids = tasks[task.name]
            for sampler in study.samplers:
                for seed in study.seeds:
                    run = study.run(model, task, sampler, seed)
                    determined_by = {
                        **shared,
                        "run": _identity(run),
                        "checkpoint": checkpoint,
                        "prompts": ids.prompts,
                        "code": code_of(provenance.policies_of(run)),
                    }
                    found = digest(determined_by)[:16]
                    # Another checker on the same texts: its scores need records of their own.
                    known = records_of.setdefault(found, {})
                    other = digest([found, task.name])[:16] if known else found
                    found = known.setdefault(ids.checker, other)
                    cells.append(
                        Cell(
                            id=found,
                            checker_id=ids.checker,
                            model=model.name,
                            task=task.name,
                            sampler=sampler.name,
                            seed=seed,
                            run=run,
                            checker=task.task,
                            examples=len(examples[task.name]),
                            examples_id=ids.examples,
                            source=sampler.source,
                            point=sampler.point,
                        )
                    )
    return cells


class _TaskIds(NamedTuple):
    examples: str
    prompts: str
    checker: str


def _of_task(task: Task, examples: Sequence[Example]) -> _TaskIds:
    scorer = task.scored_by()
    checker = [task.model_dump(mode="json"), scorer.model_dump(mode="json"), code_of([task, scorer])]
    answers = [[e.answer, dict(e.data)] for e in examples]
    return _TaskIds(
        examples=digest([[e.prompt, e.answer, dict(e.data)] for e in examples])[:16],
        prompts=digest([e.prompt for e in examples])[:16],
        checker=digest([checker, answers])[:16],
    )


def _identity(run: RunConfig) -> dict[str, Any]:
    """The run as what decides a text: files by what is in them.

    The checkpoint has a hash of its own, and so has the code of every policy, wherever its file lies.
    """
    found: dict[str, Any] = with_contents(run.model_dump(), run.to_dict())
    found.pop("plugins")
    for place in ("source", "revision", "adapter"):
        found["model"].pop(place)
    return found


def matching(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose title or sampler matches a shell pattern, or holds it as a part."""
    if pattern is None:
        return list(cells)
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = [c for c in cells if any(fnmatch.fnmatchcase(name, wanted) for name in (c.title, c.sampler))]
    if not found:
        raise ConfigurationError("--only: " + unknown_name("sampler", pattern, {c.sampler for c in cells}))
    return found


def units_of(cells: Sequence[Cell], shard: tuple[int, int] = (1, 1)) -> Iterator[Unit]:
    """The batches of the cells, interleaved: cells that share model, task and seed take turns.

    So a machine that slows down, or another job on it, hits all samplers alike, and a shard (i of n,
    from 1) holds the same prompts of every sampler.
    """
    index, count = shard
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.task, cell.seed), []).append(cell)
    for group in groups.values():
        for batch in range(max(cell.batches for cell in group)):
            if batch % count == index - 1:
                yield from (Unit(cell, batch) for cell in group if batch < cell.batches)
