"""The denoising loop, and the sampler that drives it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.engine import prompts as prompting
from dllm_sampling.engine import run_hooks
from dllm_sampling.engine.answers import check_selected
from dllm_sampling.engine.listener import Listener
from dllm_sampling.engine.outcome import Outcome, merged
from dllm_sampling.engine.prompts import Batch, Canvas
from dllm_sampling.engine.run_hooks import Policies, detached
from dllm_sampling.errors import DecodingError, PluginError
from dllm_sampling.state import noise
from dllm_sampling.state.decision import Decision
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.region import Region
from dllm_sampling.state.result import GenerationResult

if TYPE_CHECKING:
    pass


@dataclass(eq=False)
class Step:
    """One step as `Sampler.steps` yields it: everything is decided, nothing is committed yet.

    `decision` may be replaced; it is committed, under the progress guard, when the next step is asked
    for. The other fields are for reading.
    """

    state: DecodingState
    region: Region
    plan: ForwardPlan
    observation: Observation
    decision: Decision


class Run(Iterator[Step]):
    """The steps of one call, over all its batches; `result` once they are done."""

    def __init__(
        self,
        settings: SamplerSettings,
        model: Backbone,
        canvases: list[Canvas],
        width: int | None,
        seed: int,
        stop_at_eos: bool,
    ) -> None:
        self._settings = settings
        self._policies = run_hooks.policies_of(settings)
        self._model = model
        self._facts = model.facts
        self._canvases = canvases
        self._prompt_width = width
        self._seed = seed
        self._stop_at_eos = stop_at_eos
        self._listener = Listener()
        self._outcomes: list[Outcome] = []
        self._done = False
        self._iterator = self._all_steps()

    def __next__(self) -> Step:
        with torch.no_grad():
            return next(self._iterator)

    @property
    def result(self) -> GenerationResult:
        """The result; an error while steps are left."""
        if not self._done:
            raise RuntimeError("the run has steps left: iterate to the end, or call finish().")
        result = merged(self._outcomes, self._canvases, self._prompt_width, self._facts)
        return replace(result, execution=str(self._model.execution))

    def finish(self, listener: Listener | None = None) -> GenerationResult:
        """Take the steps that are left and return the result; the listener follows them."""
        listener = self._listener = listener or Listener()
        try:
            listener.begin(self._canvases, self._prompt_width or 0)
            for _ in self:
                pass
            result = self.result
            listener.rest(result)
            return result
        finally:
            listener.end()

    def _all_steps(self) -> Iterator[Step]:
        for batch in prompting.batches(self._canvases, self._settings.batch_size, self._facts):
            outcome = Outcome(batch)
            self._outcomes.append(outcome)
            try:
                yield from self._decode(batch, outcome)
            except torch.OutOfMemoryError as error:
                rows, length = batch.tokens.shape
                raise DecodingError(
                    f"out of memory with {rows} rows of {length} positions: lower batch_size (now "
                    f"{self._settings.batch_size}) or gen_length, load the weights in bfloat16, or take a "
                    f"larger device. {error}"
                ) from error
        self._done = True

    def _decode(self, batch: Batch, outcome: Outcome) -> Iterator[Step]:
        buffer = self._model.new_buffer(batch.tokens.shape[1])
        try:
            yield from self._denoise(batch, outcome, buffer)
        finally:
            self._model.execution.release(buffer)

    def _denoise(self, batch: Batch, outcome: Outcome, buffer: KVBuffer) -> Iterator[Step]:
        """The denoising loop."""
        policies = detached(self._policies)
        hooks, transforms = run_hooks.manager(policies).hook, run_hooks.transforms(policies)
        state = self._start(batch, policies)
        state.hooks = run_hooks.brought(hooks, policies)
        state.targets_in_block = hooks.plan_blocks(state=state)
        hooks.begin(state=state, facts=self._facts)
        region: Region | None = None
        begun = self._now()
        while not state.finished:
            self._refuse_to_go_on_for_ever(state)
            region = self._region(hooks, state, region)
            plan = _answer(hooks, "plan_forward", state=state, region=region)
            canvases = run_hooks.branches(hooks, state, plan)
            forward = self._model.forward(state, region, plan, buffer, self._settings.sampling, canvases)
            observation = forward.observation
            for transform in transforms:
                observation = observation.with_logits(transform(state, observation))
            for allowed in hooks.restrict(state=state, observation=observation):
                observation = observation.restricted(allowed)
            decision = _answer(hooks, "select", state=state, observation=observation)
            step = Step(state, region, plan, observation, _as_decision(decision))
            made = step.decision
            yield step
            if step.decision is not made:
                step.decision = _as_decision(check_selected("Step.decision", step.decision, vars(step)))
            done = state.commit(region, plan, observation, step.decision)
            hooks.committed(state=state, observation=observation, decision=done)
            state.read_back()
            begun, spent = time.perf_counter(), time.perf_counter() - begun
            outcome.count(
                forward.width,
                state.batch,
                spent,
                refresh=plan.is_refresh(state.length),
                compile_seconds=forward.compile_seconds,
            )
            begun += self._tell(state, region, observation)
            self._let_go(state, region, hooks, buffer, outcome)
        hooks.block_finished(state=state, region=region)
        hooks.end(state=state, result=merged([outcome], batch.canvases, self._prompt_width, self._facts))

    def _start(self, batch: Batch, policies: Policies) -> DecodingState:
        device = self._facts.device
        places = torch.tensor([canvas.place for canvas in batch.canvases])
        idle_steps = run_hooks.idle_steps(policies)
        idle = [idle_steps(int(canvas.targets.sum())) for canvas in batch.canvases]
        state = DecodingState(
            tokens=batch.tokens,
            targets=batch.targets,
            valid=batch.valid,
            seeds=noise.row_seeds(self._seed, places).to(device),
            idle_steps=torch.tensor(idle, device=device),
            facts=self._facts,
            slots={id(policy): path for path, policy, _ in run_hooks.slots(policies)},
            stop_at_eos=self._stop_at_eos,
            names={"schedule": policies.schedule.name, "cache": policies.cache.name},
        )
        state.read_back()
        return state

    @staticmethod
    def _refuse_to_go_on_for_ever(state: DecodingState) -> None:
        """The progress guard ends every run; what writes into the state could undo that."""
        if state.forward_index >= state.most_forwards:
            raise PluginError(
                f"{state.forward_index} forwards were made, and no more are ever needed: a policy of this "
                "run writes into the state's tensors, which is for the engine alone."
            )

    @staticmethod
    def _region(hooks: Any, state: DecodingState, previous: Region | None) -> Region:
        planned: Region = _answer(hooks, "plan_region", state=state)
        region = planned.clipped(state)
        if previous is None and not region.starts_block:
            region = replace(region, starts_block=True)
        if region.starts_block:
            if previous is not None:
                hooks.block_finished(state=state, region=previous)
            state.begin_block()
            hooks.block_started(state=state, region=region)
        return region

    def _tell(self, state: DecodingState, region: Region, observation: Observation) -> float:
        """Show the step to the listener and end the rows that it stops; returns the seconds that took."""
        begun = time.perf_counter()
        stopped = self._listener.after_step(state, region, observation)
        if stopped is not None:
            state.end_rows(stopped)
        return time.perf_counter() - begun

    def _let_go(
        self, state: DecodingState, region: Region, hooks: Any, buffer: KVBuffer, outcome: Outcome
    ) -> None:
        """Record the rows that are done and take them out of the batch, as far as its shape allows."""
        left = [i for i, column in enumerate(state.next_open) if column < state.length]
        if len(left) == state.batch:
            return
        block_over = region.span is None or min(state.next_open) >= region.span.stop
        size = self._model.execution.batch_size(len(left), state.batch, block_over=block_over)
        done = [i for i, column in enumerate(state.next_open) if column == state.length]
        keep = sorted(left + done[: size - len(left)])
        if len(keep) < state.batch:
            outcome.record(state, [i for i in range(state.batch) if i not in set(keep)])
            index = state.select_rows(keep)
            buffer.select_rows(index)
            if keep:
                hooks.rows_selected(state=state, rows=index)

    def _now(self) -> float:
        if self._facts.device.type == "cuda":
            torch.cuda.synchronize(self._facts.device)
        return time.perf_counter()


def _answer(hooks: Any, name: str, **arguments: Any) -> Any:
    answer = getattr(hooks, name)(**arguments)
    if answer is None:
        raise PluginError(f"{name} returned None: every step needs an answer.")
    return answer


def _as_decision(selected: Tensor | Decision) -> Decision:
    return Decision(selected) if isinstance(selected, Tensor) else selected
