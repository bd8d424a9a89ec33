"""A sampler as the `custom_generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
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
)

from dllm_sampling.engine.listener import Listener, Streamer
from dllm_sampling.errors import ConfigurationError, DllmSamplingError
from dllm_sampling.inputs.arguments import whole

if TYPE_CHECKING:
    from dllm_sampling.engine.sampler import Sampler
    from dllm_sampling.state.facts import ModelFacts
    from dllm_sampling.state.result import GenerationResult


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


def for_transformers(
    sampler: Sampler, *, streamer: Streamer | None = None, seed: int | None = None
) -> Callable[..., GenerationResult | Tensor]:
    """For transformers: `model.generate(ids, custom_generate=for_transformers(sampler), ...)`.

    `model` is the one that the sampler decodes with (`sampler.model.model`). Honoured: max_new_tokens,
    max_length, attention_mask (padding on the left), eos_token_id, pad_token_id, suppress_tokens,
    num_return_sequences, stopping_criteria, max_time, return_dict_in_generate (the result is then a
    GenerationResult), and do_sample with temperature, top_k and top_p where the sampler does not sample by
    itself. Which keys and values are kept is the cache policy's affair, whatever use_cache says.

    What a canvas cannot honour is a ConfigurationError when the callable is called: beams, scores, processors
    of logits that read the text to the left. An assistant_model has no effect, since `generate` keeps it to
    itself.

    Args:
        sampler: What decodes.
        streamer: One of transformers', for one prompt. It is given here and not to `generate`, which would
            hand it the prompt and nothing more.
        seed: Of the noise; drawn from torch's global generator at each call where it is not given.

    Returns:
        What `custom_generate` takes.
    """

    def decode(model: PreTrainedModel, input_ids: Tensor, **arguments: Any) -> GenerationResult | Tensor:
        return _decode(sampler, model, input_ids, streamer=streamer, seed=seed, **arguments)

    return decode


def _decode(
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
    """Decode with `sampler` what transformers prepared; see `for_transformers`."""
    try:
        _refuse(sampler, model, generation_config, others)
        _refuse_other_positions(others.get("position_ids"), input_ids, attention_mask)
        ends = [c for c in stopping_criteria if type(c) is EosTokenCriteria]
        facts = _facts(sampler.model.facts, model.generation_config, generation_config, ends)
        backbone = sampler.model.with_facts(facts)
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
    result = run.finish(Listener(streamer, criteria))
    sequences = result.sequences.to(input_ids.device)
    return replace(result, sequences=sequences) if generation_config.return_dict_in_generate else sequences


def _refuse(
    sampler: Sampler, model: PreTrainedModel, config: GenerationConfig, others: dict[str, Any]
) -> None:
    """Raise ConfigurationError for what would be ignored."""
    if all(module is not model for module in sampler.model.model.modules()):
        raise ConfigurationError(
            "for_transformers(sampler) was called for another model than the sampler's: call generate on "
            "sampler.model.model, or make a Sampler for this one."
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
