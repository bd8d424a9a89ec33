"""The work of `generate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dllm_sampling.cli.prompt_files import read_prompts
from dllm_sampling.cli.terminal import Screen, say, tell, tell_of
from dllm_sampling.config.run_config import RunConfig
from dllm_sampling.engine.sampler import Sampler
from dllm_sampling.state.result import MOST_FORCED, GenerationResult

__all__ = ["configure", "generate", "read_prompts"]


def configure(file: Path | None, given: Mapping[str, Any], settings: Sequence[str]) -> RunConfig:
    """A run from a file, then the named options, then `--set`."""
    options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    overrides = [*options, *settings]
    return RunConfig.of(overrides=overrides) if file is None else RunConfig.read(file, overrides=overrides)


def generate(config: RunConfig, prompts: list[Any], *, as_json: bool, quiet: bool) -> None:
    """Decode and print: text on stdout, progress and counts on stderr."""
    model = config.model.load()
    sampler = Sampler.from_config(model, config.sampler)
    steps = sampler.steps(prompts, config.gen_length, seed=config.seed, chat_template=config.chat_template)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[info]}", markup=False),
        TimeElapsedColumn(),
    )
    screen = Screen(stderr=True)
    with Progress(
        *columns, console=screen, transient=True, disable=quiet or not screen.is_terminal
    ) as progress:
        bar = progress.add_task("decoding", total=len(prompts) * config.gen_length, info="")
        finished = 0
        for step in steps:
            state = step.state
            if state.forward_index == 0:
                finished = int(progress.tasks[bar].completed)
            # Host counts only: watching a run costs it no synchronisation.
            done = sum(max(column - state.first_target, 0) for column in state.next_open)
            progress.update(bar, completed=finished + done, info=f"forward {state.forward_index + 1}")
    result = steps.result
    if as_json:
        say(json.dumps({"config": config.to_dict(), **_summary(result), "results": _rows(prompts, result)}))
    else:
        _say(result)
        if not quiet:
            tell(_sentence(result, config))
    if result.forced_share > MOST_FORCED:
        name = config.sampler.unmasking.name
        tell_of(
            "warning",
            f"{100 * result.forced_share:.0f} % of the commits were forced: where {name} "
            "chooses nothing, the engine commits the most confident position, one a forward.",
        )


def _say(result: GenerationResult) -> None:
    for i, text in enumerate(result.texts):
        if len(result.texts) > 1:
            say(f"{'' if i == 0 else chr(10)}[{i}]")
        say(text)


def _summary(result: GenerationResult) -> dict[str, Any]:
    return {
        "tokens": int(result.tokens.sum()),
        "row_forwards": int(result.row_forwards.sum()),
        "tokens_per_forward": result.tokens_per_forward,
        "forwards": result.forwards,
        "refreshes": result.refreshes,
        "positions_computed": result.positions_computed,
        "commits": result.commits,
        "forced": result.forced,
        "forced_share": result.forced_share,
        "remasks": result.remasks,
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "execution": result.execution,
    }


def _rows(prompts: list[Any], result: GenerationResult) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompts[i],
            "text": result.texts[i],
            "tokens": int(result.tokens[i]),
            "row_forwards": int(result.row_forwards[i]),
            "commits": int(result.row_commits[i]),
            "forced": int(result.row_forced[i]),
            "forward_of_position": result.forward_of_position[i].tolist(),
        }
        for i in range(len(prompts))
    ]


def _sentence(result: GenerationResult, config: RunConfig) -> str:
    s = config.sampler
    return (
        f"{s.unmasking.name} + {s.cache.name}: {int(result.tokens.sum())} tokens in "
        f"{int(result.row_forwards.sum())} row forwards ({result.tokens_per_forward:.2f} a forward), "
        f"{result.forced} of {result.commits} commits forced, "
        f"{result.forwards} forwards of which {result.refreshes} refreshes, "
        f"{result.positions_computed} positions computed, {result.seconds:.2f} s"
        + (f" and {result.compile_seconds:.1f} s of compiling" if result.compile_seconds else "")
        + f", {result.execution}"
    )
