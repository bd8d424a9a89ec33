"""The denoising loop: one batch from its first forward to its last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.forward import Forward, forward
from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.engine import run_hooks
from dllm_sampling.engine.blocks import Blocks
from dllm_sampling.engine.commit import commit
from dllm_sampling.engine.leaving import let_rows_leave
from dllm_sampling.engine.listener import Listener
from dllm_sampling.engine.outcome import Outcome
from dllm_sampling.engine.progress_guard import refuse_to_go_on_for_ever
from dllm_sampling.engine.prompts import Batch
from dllm_sampling.engine.step import Step
from dllm_sampling.engine.stopwatch import Stopwatch
from dllm_sampling.errors import PluginError
from dllm_sampling.state import noise
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.region import Region


class BatchRun:
    """A batch while it is decoded: its state, its hooks, its keys and values, and what it came to."""

    def __init__(
        self,
        model: Backbone,
        settings: SamplerSettings,
        batch: Batch,
        prompt_width: int | None,
        seed: int,
        stop_at_eos: bool,
        listener: Listener,
    ) -> None:
        self._model = model
        self._sampling = settings.sampling
        self.listener = listener
        policies = run_hooks.detached(run_hooks.policies_of(settings))
        self._hooks = run_hooks.RunHooks(policies)
        self._buffer = model.new_buffer(batch.tokens.shape[1])
        self._region: Region | None = None
        device, idle_steps = model.facts.device, run_hooks.idle_steps(policies)
        places = [canvas.place for canvas in batch.canvases]
        idle = [idle_steps(int(canvas.targets.sum())) for canvas in batch.canvases]
        self.outcome = Outcome(batch, model.facts, prompt_width)
        self.state = DecodingState(
            tokens=batch.tokens,
            targets=batch.targets,
            valid=batch.valid,
            seeds=noise.row_seeds(seed, torch.tensor(places)).to(device),
            idle_steps=torch.tensor(idle, device=device),
            facts=model.facts,
            slots={id(policy): path for path, policy, _ in run_hooks.slots(policies)},
            stop_at_eos=stop_at_eos,
            places=places,
            hooks=self._hooks.own,
            names={"schedule": policies.schedule.name, "cache": policies.cache.name},
        )

    def steps(self) -> Iterator[Step]:
        """Every step; the hooks `begin`, `end` and, however the run ends, `close` around them."""
        state, hooks = self.state, self._hooks
        try:
            state.tensors.targets_in_block = hooks.plan_blocks(state)
            hooks.begin(state, self._model.facts)
            yield from self._denoise()
            hooks.end(state, self.outcome.result)
        except BaseException:
            with suppress(PluginError):  # what broke the run is told
                hooks.close(state)
            raise
        else:
            hooks.close(state)
        finally:
            self._model.execution.release(self._buffer)

    def _denoise(self) -> Iterator[Step]:
        state, hooks, watch = self.state, self._hooks, Stopwatch(self._model.facts.device)
        blocks = Blocks(hooks, state)
        while not state.finished:
            refuse_to_go_on_for_ever(state)
            region = self._region = blocks.next_region()
            plan = hooks.plan_forward(state, region)
            seen = self._forward(region, plan)
            observation = hooks.shown(state, seen.observation)
            step = Step(state, region, plan, observation, hooks.select(state, observation))
            with watch.paused():
                yield step
            done = commit(state, plan, observation, step.decision)
            hooks.committed(state, observation, done)
            state.read_back()
            self.outcome.count(seen, state.batch, watch.lap(), refresh=plan.is_refresh(state.length))
            with watch.paused():
                self.listener.after_step(state, region, observation)
            let_rows_leave(state, region, hooks, self._buffer, self._model.execution, self.outcome)
        blocks.finish()

    def _forward(self, region: Region, plan: ForwardPlan) -> Forward:
        canvases = self._hooks.canvases(self.state, plan)
        return forward(self._model, self.state, region, plan, self._buffer, self._sampling, canvases)

    def forward_beside(self, tokens: Tensor) -> Observation:
        """A counted forward of other tokens `[batch, length]`, which reads and writes no keys and values."""
        state, region = self.state, self._region
        assert region is not None
        plan = ForwardPlan.full(state, store=False)
        watch = Stopwatch(self._model.facts.device)
        seen = forward(self._model, state, region, plan, self._buffer, self._sampling, tokens=tokens)
        watch.wait()
        self.outcome.count(seen, state.batch, watch.lap(), refresh=False)
        rows = state.tensors
        rows.forwards_beside = rows.forwards_beside + seen.observation.masked.any(1)
        return seen.observation
