"""What transformers' `generate` offers around a loop: streamers, stopping criteria, and its settings.

`Listener` follows a run for a streamer and stopping criteria. `custom_generate` runs a sampler with the
arguments of `model.generate`, and refuses each one that a canvas cannot honour.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dllm_sampling.arguments import whole
from dllm_sampling.errors import ConfigurationError, DllmSamplingError, shown

if TYPE_CHECKING:
    from dllm_sampling.engine import Sampler
    from dllm_sampling.observation import Observation
    from dllm_sampling.prompts import Canvas
    from dllm_sampling.result import GenerationResult
    from dllm_sampling.state import DecodingState, ModelFacts, Region


@runtime_checkable
class Streamer(Protocol):
    """What a transformers streamer has. One with `put_draft(value)` as well is shown every step."""

    def put(self, value: Tensor) -> None:
        """Take token ids: the prompt first, then text."""

    def end(self) -> None:
        """The text is complete."""


class Listener:
    """Follows a run: streams its text, and asks stopping criteria which rows to end.

    Text is final in all of a block that is done, and left of the region of a step. The streamer gets it
    then, from left to right, as `[1, n]` on the host; a schedule that goes back to a text it has left is
    not for streaming. `put_draft` gets, after every step, what is not final yet: the region's tokens,
    candidates where it is open. The criteria are asked, as `criteria(tokens [batch, n], None)`, whenever
    more of the text is final and rows are open; the prompts have the width that they had in the call.
    """

    def __init__(
        self,
        streamer: Streamer | None = None,
        criteria: Sequence[StoppingCriteria] | None = None,
        *,
        put_prompt: bool = True,
    ) -> None:
        if streamer is not None and not isinstance(streamer, Streamer):
            raise ConfigurationError(f"streamer must have put and end, got {shown(streamer)}.")
        criteria = () if criteria is None else criteria
        if not isinstance(criteria, (list, tuple)) or not all(map(callable, criteria)):
            raise ConfigurationError(f"stopping_criteria must be a list of criteria, got {shown(criteria)}.")
        self._streamer: Any = streamer
        self._drafts = hasattr(streamer, "put_draft")
        self._criteria = StoppingCriteriaList(criteria)
        self._put_prompt = put_prompt
        self._width = 0
        self._sent = self._asked = 0

    def begin(self, canvases: Sequence[Canvas], prompt_width: int) -> None:
        """Before the first step: what is decoded, and the columns of the prompts in the call."""
        self._width = prompt_width
        if self._streamer is None:
            return
        if len(canvases) != 1:
            raise ConfigurationError(f"a streamer takes the text of one prompt; {len(canvases)} were given.")
        if self._put_prompt:
            self._streamer.put(canvases[0].tokens[None, : canvases[0].before])

    def after_step(self, state: DecodingState, region: Region, observation: Observation) -> Tensor | None:
        """Show what a step did. Which rows to end, bool `[batch]`; None where there was nothing to ask."""
        if self._streamer is None and not self._criteria:
            return None
        if self._drafts:
            self._put_draft(state, region, observation)
        final = _final(state, region)
        if self._streamer is not None and final > state.first_target + self._sent:
            self._streamer.put(state.tokens[:1, state.first_target + self._sent : final].cpu())
            self._sent = final - state.first_target
        if state.forward_index == 1:  # the first step of a batch
            self._asked = state.first_target
        if not self._criteria or final <= self._asked:
            return None
        self._asked = final
        # The batch is as wide as its own longest prompt, which may be shorter than that of the call.
        shown = torch.nn.functional.pad(
            state.tokens[:, :final],
            (self._width - state.first_target, 0),
            value=state.facts.pad_token_id,
        )
        stopped: Tensor = self._criteria(shown, None)
        return stopped

    def rest(self, result: GenerationResult) -> None:
        """After the last step: stream what came with it."""
        if self._streamer is None:
            return
        first = result.sequences.shape[1] - result.forward_of_position.shape[1]
        written = (result.forward_of_position[0] >= 0).nonzero().flatten().tolist()
        if written and written[-1] >= self._sent:
            self._streamer.put(result.sequences[:, first + self._sent : first + written[-1] + 1])

    def end(self) -> None:
        """Last of all, also where the run broke: who waits for text need not wait on."""
        if self._streamer is not None:
            self._streamer.end()

    def _put_draft(self, state: DecodingState, region: Region, observation: Observation) -> None:
        if getattr(self._streamer, "_takes_logits", False):  # so transformers marks those that want them
            self._streamer.put_draft(logits=observation.logits.cpu())
            return
        inside = region.positions[0] >= 0
        columns = region.positions[0][inside]
        canvas = state.tokens[0].clone()
        tokens = canvas[columns]
        open_still = tokens == state.facts.mask_token_id  # nothing is ever committed as the mask
        canvas[columns] = torch.where(open_still, observation.tokens[0][inside], tokens)
        self._streamer.put_draft(canvas[None, state.first_target + self._sent : columns[-1] + 1].cpu())


def _final(state: DecodingState, region: Region) -> int:
    """The column before which the text of every open row stays as it is; 0 where no row is open."""
    start: int
    stop: int
    if region.span is not None:
        start, stop = region.span.start, region.span.stop
    else:
        inside = region.positions >= 0
        bounds = [region.positions.where(inside, state.length).amin(), region.positions.amax() + 1]
        start, stop = torch.stack(bounds).tolist()
    leftmost_open = min(state.next_open)
    if leftmost_open == state.length:
        return 0
    return min(stop if leftmost_open >= stop else start, leftmost_open)


# transformers' arguments ---------------------------------------------------------------------------

# Settings that ask for another algorithm or another output, and the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "use_mtp": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "token_healing": (False,),
    "cache_implementation": (),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}
# Made by transformers from settings that `Sampling` has too.
_WARPERS: dict[type[LogitsProcessor], str] = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
}
# What transformers samples with where nothing is said.
_SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
# The further ones of its sampling; where it samples they come as processors of logits, and are refused there.
_OTHER_SAMPLING = {"min_p": None, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
# Prepared by transformers for a loop of its own; a run needs none of them.
_UNUSED = {"logits_to_keep", "use_cache", "synced_gpus"}


def custom_generate(
    sampler: Sampler,
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    generation_config: GenerationConfig,
    logits_processor: Sequence[LogitsProcessor] = (),
    stopping_criteria: Sequence[StoppingCriteria] = (),
    attention_mask: Tensor | None = None,
    streamer: Streamer | None = None,
    seed: int | None = None,
    **others: Any,
) -> GenerationResult | Tensor:
    """Decode with `sampler` what transformers prepared; see `Sampler.custom_generate`."""
    # transformers gives the streamer the prompt, and then withholds it from what is called.
    streamer = streamer or _argument_of_generate("streamer")
    try:
        _refuse(sampler, model, generation_config, others)
        _refuse_other_positions(others.get("position_ids"), input_ids, attention_mask)
        ends = [c for c in stopping_criteria if type(c) is EosTokenCriteria]
        backbone = copy.copy(sampler.model)  # the same weights
        backbone.facts = _facts(backbone.facts, model.generation_config, generation_config, ends)
        settings = dict(sampler.settings)
        settings["sampling"] = _sampling(sampler, generation_config, model.generation_config)
        settings["transforms"] += tuple(_transforms(logits_processor, generation_config))
        run = (
            type(sampler)
            .from_config(backbone, settings)
            .steps(
                input_ids,
                int(generation_config.max_length) - input_ids.shape[1],
                attention_mask=attention_mask,
                seed=int(torch.randint(2**62, ())) if seed is None else whole("seed", seed),
            )
        )
    except DllmSamplingError:
        if streamer is not None:
            streamer.end()
        raise
    criteria = [c for c in stopping_criteria if type(c) is not EosTokenCriteria]
    result = run.finish(Listener(streamer, criteria, put_prompt=False))
    sequences = result.sequences.to(input_ids.device)
    return replace(result, sequences=sequences) if generation_config.return_dict_in_generate else sequences


_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


def _argument_of_generate(name: str) -> Any:
    """An argument of the `generate` that called; transformers 5 hands a callable only some of them."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _GENERATE:
            return frame.f_locals.get(name)
    return None


def _refuse(
    sampler: Sampler, model: PreTrainedModel, config: GenerationConfig, others: dict[str, Any]
) -> None:
    """Raise ConfigurationError for what would be ignored."""
    if all(module is not model for module in sampler.model.model.modules()):
        raise ConfigurationError(
            "custom_generate was called for another model than the sampler's: call generate on "
            "sampler.model.model, or make a Sampler for this one."
        )
    if _argument_of_generate("assistant_model") is not None:
        raise ConfigurationError(
            "assistant_model cannot be honoured: a sampler decodes with its model alone."
        )
    for name, neutral in _REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value not in neutral:
            allowed = f"; leave it at {neutral[0]!r}" if neutral else "; leave it out"
            raise ConfigurationError(f"{name}={value!r} cannot be honoured by a sampler{allowed}.")
    past = others.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        raise ConfigurationError(
            "past_key_values holds tokens; a sampler reads the whole canvas: leave it out and give the whole "
            "text as input_ids."
        )
    known = {*_UNUSED, "past_key_values", "position_ids"}
    unknown = [name for name, value in others.items() if value is not None and name not in known]
    if unknown:
        raise ConfigurationError(
            f"{', '.join(unknown)} cannot be honoured by a sampler; it takes input_ids and attention_mask."
        )


def _refuse_other_positions(given: Tensor | None, input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """transformers derives position ids from the mask; others would not reach the model."""
    if given is None:
        return
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    own = mask.long().cumsum(-1) - 1
    if not bool(((given == own) | (mask == 0)).all()):
        raise ConfigurationError(
            "position_ids are counted by the sampler, from attention_mask: leave them out."
        )


def _facts(
    facts: ModelFacts,
    defaults: GenerationConfig | None,
    config: GenerationConfig,
    ends: Sequence[EosTokenCriteria],
) -> ModelFacts:
    """The model's facts with the special ids of this call, where they are not the model's defaults."""
    usual = _ids(defaults and defaults.eos_token_id)
    given = [i for criterion in ends for i in criterion.eos_token_id.flatten().tolist()]
    changes: dict[str, Any] = {}
    if given and set(given) != set(usual):
        changes["eos_token_ids"] = tuple(given)
    if config.pad_token_id is not None:
        changes["pad_token_id"] = config.pad_token_id
    for name, value in changes.items():
        if any(not 0 <= i < facts.vocab_size for i in _ids(value)):
            raise ConfigurationError(f"{name}={value!r}: ids are in [0, {facts.vocab_size}).")
    return replace(facts, **changes)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _sampling(
    sampler: Sampler, config: GenerationConfig, defaults: GenerationConfig | None
) -> dict[str, Any]:
    """The sampler's own sampling where it samples; what `do_sample` asks for where it does not."""
    own = sampler.settings.sampling.model_dump()
    if not config.do_sample:
        for name, neutral in (_SAMPLING_DEFAULTS | _OTHER_SAMPLING).items():
            value, usual = getattr(config, name, None), getattr(defaults, name, None)
            if value not in (None, neutral, usual, own.get(name)):
                raise ConfigurationError(f"{name}={value!r} has no effect without do_sample=True.")
        return own
    asked = {name: getattr(config, name) for name in _SAMPLING_DEFAULTS}
    asked["top_k"] = asked["top_k"] or None
    if own["temperature"] == 0:
        return own | asked
    for name, default in _SAMPLING_DEFAULTS.items():
        if asked[name] not in (default, own[name]):
            raise ConfigurationError(
                f"{name}={asked[name]!r} contradicts the sampler's own sampling, where it is {own[name]!r}: "
                "give it in one place."
            )
    return own


def _transforms(processors: Sequence[LogitsProcessor], config: GenerationConfig) -> list[dict[str, Any]]:
    """Logits transforms for the processors that mean the same at every position of a canvas."""
    found = []
    for processor in processors:
        name = _WARPERS.get(type(processor))
        if name is not None and config.do_sample and getattr(processor, name) == getattr(config, name):
            continue
        if type(processor) is not SuppressTokensLogitsProcessor:
            raise ConfigurationError(
                f"{type(processor).__name__} reads the text to the left of one next token and cannot be "
                "applied to a canvas: give do_sample, temperature, top_k, top_p or suppress_tokens, or the "
                "sampler a logits transform (transforms=[...])."
            )
        found.append({"name": "suppress_tokens", "tokens": processor.suppress_tokens.tolist()})
    return found
