"""The denoising loop, and the sampler that drives it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dllm_sampling import generation, noise, run_hooks
from dllm_sampling import prompts as prompting
from dllm_sampling.answers import check_selected
from dllm_sampling.arguments import flag, whole
from dllm_sampling.backbones.base import Backbone
from dllm_sampling.errors import ConfigurationError, DecodingError, PluginError, shown
from dllm_sampling.generation import Listener
from dllm_sampling.kv_buffer import KVBuffer
from dllm_sampling.observation import Observation, Sampling
from dllm_sampling.outcome import Outcome, merged
from dllm_sampling.policies import (
    BlockSchedule,
    CachePolicy,
    LogitsTransform,
    Observer,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.prompts import Batch, Canvas, Prompts
from dllm_sampling.result import GenerationResult
from dllm_sampling.run_hooks import Policies, detached
from dllm_sampling.settings import SamplerSettings
from dllm_sampling.state import Decision, DecodingState, ForwardPlan, Region

if TYPE_CHECKING:
    from transformers import PreTrainedModel, StoppingCriteria

    from dllm_sampling.generation import Streamer


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


class Sampler:
    """Decodes with one choice of policies. Policies are given as names, mappings or instances.

    model: a loaded backbone. unmasking, cache, schedule: one policy each. transforms, wrappers,
    observers: lists, applied in order; a later wrapper stands around an earlier one. sampling: how
    candidates are drawn (`Sampling`). stop_at_eos: a row is finished when an end of sequence is
    committed and nothing before it is masked. batch_size: rows decoded together.

    Raises ConfigurationError for anything that cannot work. A sampler keeps no state between calls.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        unmasking: str | Mapping[str, Any] | UnmaskingPolicy | None = None,
        cache: str | Mapping[str, Any] | CachePolicy | None = None,
        schedule: str | Mapping[str, Any] | BlockSchedule | None = None,
        transforms: Sequence[str | Mapping[str, Any] | LogitsTransform] | None = None,
        wrappers: Sequence[str | Mapping[str, Any] | Wrapper] | None = None,
        observers: Sequence[str | Mapping[str, Any] | Observer] | None = None,
        sampling: Mapping[str, Any] | Sampling | None = None,
        stop_at_eos: bool | None = None,
        batch_size: int | None = None,
    ) -> None:
        given = {
            "unmasking": unmasking,
            "cache": cache,
            "schedule": schedule,
            "transforms": transforms,
            "wrappers": wrappers,
            "observers": observers,
            "sampling": sampling,
            "stop_at_eos": stop_at_eos,
            "batch_size": batch_size,
        }
        settings = {key: value for key, value in given.items() if value is not None}
        if not isinstance(model, Backbone):
            raise ConfigurationError(
                f"model must be what load_model returns, got {shown(model)}: Sampler(load_model(...), ...)."
            )
        if stop_at_eos is not None:
            flag("stop_at_eos", stop_at_eos)
        if batch_size is not None:
            settings["batch_size"] = whole("batch_size", batch_size, least=1)
        self.model = model
        self.settings = SamplerSettings.of(settings)
        run_hooks.manager(run_hooks.policies_of(self.settings))  # refuses broken policies now, not at a run

    @classmethod
    def from_config(cls, model: Backbone, config: Mapping[str, Any] | SamplerSettings) -> Sampler:
        """A sampler from what `config` returned, or from the `sampler` section of a file."""
        settings = config if isinstance(config, SamplerSettings) else SamplerSettings.of(config)
        return cls(model, **{name: getattr(settings, name) for name in SamplerSettings.model_fields})

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data: `from_config` takes it back."""
        return self.settings.model_dump(mode="json")

    # Decoding ----------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompts,
        gen_length: int = 256,
        *,
        attention_mask: Tensor | None = None,
        seed: int = 0,
        places: Sequence[int] | None = None,
        chat_template: bool = True,
        streamer: Streamer | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
    ) -> GenerationResult:
        """Write `gen_length` tokens behind each prompt.

        prompts: one prompt or a list of them. A prompt is a string, a chat (a list of messages with role and
            content), token ids (a list, or a tensor or array `[prompt]`), or what a tokenizer returns.
            Several may also be a tensor or array of integers `[batch, prompt]` padded on the left, with its
            attention_mask, or what a tokenizer returns for several texts.
        seed: of the noise at temperature above 0 and of random policies.
        places: the prompts' places in a larger call of which this is a part; their noise is then the
            same as there. By default 0, 1, 2, ...
        chat_template: whether a string becomes a user message where the checkpoint has a template.
        streamer: one of transformers', for one prompt. It gets the prompt, then text as soon as it is final,
            from left to right; `put_draft`, where it has that, gets the draft after every step.
        stopping_criteria: those of transformers. They are asked when a block is done, with the text so far
            and None; what a row they stop leaves open becomes padding.
        Raises PromptError, naming the prompt, for what is no prompt, is empty or is too long, and
        ConfigurationError for other arguments that cannot work.
        """
        listener = Listener(streamer, stopping_criteria)
        run = self.steps(
            prompts,
            gen_length,
            attention_mask=attention_mask,
            seed=seed,
            places=places,
            chat_template=chat_template,
        )
        return run.finish(listener)

    def custom_generate(
        self, model: PreTrainedModel, input_ids: Tensor, *, seed: int | None = None, **arguments: Any
    ) -> GenerationResult | Tensor:
        """For transformers: `model.generate(ids, custom_generate=sampler.custom_generate, ...)`.

        model is the one that the sampler decodes with (`sampler.model.model`). Honoured: max_new_tokens,
        max_length, attention_mask (padding on the left), eos_token_id, pad_token_id, suppress_tokens,
        num_return_sequences, streamer, stopping_criteria, max_time, return_dict_in_generate (the result is
        then a GenerationResult), and do_sample with temperature, top_k and top_p where the sampler does not
        sample by itself. seed: of the noise; drawn from torch's global generator where it is not given.
        Which keys and values are kept is the cache policy's affair, whatever use_cache says.
        Raises ConfigurationError for what a canvas cannot honour: beams, assistants, scores, processors of
        logits that read the text to the left.
        """
        return generation.custom_generate(self, model, input_ids, seed=seed, **arguments)

    def steps(
        self,
        prompts: Prompts,
        gen_length: int = 256,
        *,
        attention_mask: Tensor | None = None,
        seed: int = 0,
        places: Sequence[int] | None = None,
        chat_template: bool = True,
    ) -> Run:
        """As `generate`, a step at a time: iterate, and read `result` when it ends."""
        facts = self.model.facts
        seed = whole("seed", seed)
        ids = prompting.encode(prompts, attention_mask, facts, chat_template)
        canvases = prompting.with_targets(ids, gen_length, facts, places)
        width = prompting.width(prompts, ids)
        return Run(self, canvases, width, seed, self.settings.stop_at_eos)

    def infill(
        self,
        canvas: Tensor | Sequence[prompting.Ids],
        targets: Tensor | Sequence[Any] | None = None,
        *,
        seed: int = 0,
        stop_at_eos: bool = False,
    ) -> GenerationResult:
        """Write the targets of canvases, which may lie anywhere.

        canvas: token ids, a tensor or array `[batch, length]` or a list of rows.
        targets: True or False (1 or 0), the canvas's shape; by default every mask id. Given positions
            never change.
        Raises PromptError, naming the canvas, for what is none or has no target.
        """
        seed, stop_at_eos = whole("seed", seed), flag("stop_at_eos", stop_at_eos)
        canvases = prompting.to_fill(canvas, targets, self.model.facts)
        return Run(self, canvases, None, seed, stop_at_eos).finish()


class Run(Iterator[Step]):
    """The steps of one call, over all its batches; `result` once they are done."""

    def __init__(
        self, sampler: Sampler, canvases: list[Canvas], width: int | None, seed: int, stop_at_eos: bool
    ) -> None:
        self._settings = sampler.settings
        self._policies = run_hooks.policies_of(sampler.settings)
        self._model = sampler.model
        self._facts = sampler.model.facts
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
