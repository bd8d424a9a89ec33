"""The generation settings of a harness task: each is honoured, or refused by name.

A task's `generation_kwargs`, changed by --gen_kwargs, go to the model with every request. What a sampler
does by itself is fine; anything else would be ignored, and the score would be another one than the task's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dllm_sampling.errors import ConfigurationError, shown, unknown_name
from dllm_sampling.inputs.arguments import is_whole
from dllm_sampling.state.sampling import Sampling

# One setting under the names of the harness's own models.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")
# Settings that ask for something else than a sampler does, and the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "diversity_penalty": (0,),
    "early_stopping": (False,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "frequency_penalty": (0,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "n": (1,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "typical_p": (1,),
    "use_cache": (True, False),  # which keys and values are kept is the cache policy's affair
}
_OTHER_NAMES = {
    "max_length": "the targets behind a prompt are max_gen_toks",
    "seed": "seed is given in --model_args",
    "stop": "stop strings are until",
    "stop_sequences": "stop strings are until",
    "stop_strings": "stop strings are until",
}


def check(settings: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a setting that no sampler honours, and for a value that none can have."""
    for key, value in settings.items():
        if key in _NEUTRAL:
            if value is not None and value not in _NEUTRAL[key]:
                raise ConfigurationError(
                    f"{key}={shown(value)} cannot be honoured by a sampler: give {key}={_NEUTRAL[key][0]} in "
                    "--gen_kwargs."
                )
        elif key in _OTHER_NAMES:
            raise ConfigurationError(f"{key}={shown(value)} cannot be honoured: {_OTHER_NAMES[key]}.")
        elif key not in (*_LENGTHS, *_SAMPLING, "until"):
            known = (*_LENGTHS, *_SAMPLING, *_NEUTRAL, "until")
            raise ConfigurationError(unknown_name("generation setting", key, known))
    length(settings)
    stops(settings)


def length(settings: Mapping[str, Any]) -> int | None:
    """How many tokens the task asks for, under whichever name; None where it says nothing."""
    given = {name: settings[name] for name in _LENGTHS if settings.get(name) is not None}
    for name, value in given.items():
        whole = is_whole(value) or (isinstance(value, float) and value.is_integer())
        if not whole or value < 1:
            raise ConfigurationError(f"{name} must be a whole number of at least 1, got {shown(value)}.")
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigurationError(f"{said} contradict each other: give one of them.")
    return int(next(iter(given.values()))) if given else None


def stops(settings: Mapping[str, Any]) -> list[str]:
    """The stop strings."""
    until = settings.get("until")
    if until is None:
        return []
    found = [until] if isinstance(until, str) else until
    if not isinstance(found, (list, tuple)) or not all(isinstance(stop, str) for stop in found):
        raise ConfigurationError(f"until must be a text or a list of texts, got {shown(until)}.")
    return list(found)


def check_sampling(settings: Mapping[str, Any], own: Sampling) -> None:
    """Raise ConfigurationError where the task asks for another sampling than the sampler's.

    As the harness's own models read it: a temperature above 0 alone samples, do_sample=False is greedy
    whatever the temperature.
    """
    wanted, said = _temperature(settings)
    if wanted is not None and wanted != own.temperature:
        remedy = f"do_sample=true,temperature={own.temperature:g}" if own.temperature else "do_sample=false"
        raise ConfigurationError(
            f"the task says {said}, the sampler's temperature is {own.temperature:g}: give "
            f"sampling.temperature={wanted:g} in --model_args, or {remedy} in --gen_kwargs."
        )
    if settings.get("do_sample") and wanted is None and own.temperature == 0:
        raise ConfigurationError(
            "the task says do_sample=True, the sampler's temperature is 0: give sampling.temperature=... in "
            "--model_args, or do_sample=false in --gen_kwargs."
        )
    for name, neutral, off in (("top_p", 1.0, (None, 1)), ("top_k", None, (None, 0, -1))):
        value = settings.get(name)
        if name not in settings or value is None:
            continue
        _number(name, value)
        asked = neutral if value in off else value
        has = getattr(own, name)
        if asked != has:
            none = "no effect at temperature 0" if own.temperature == 0 else f"the sampler's is {has}"
            raise ConfigurationError(
                f"the task says {name}={value}, {none}: give sampling.{name}={_plain(asked)} in --model_args "
                f"{'with a temperature above 0 ' if own.temperature == 0 else ''}or {name}={off[-1]} in "
                "--gen_kwargs."
            )


def _temperature(settings: Mapping[str, Any]) -> tuple[float | None, str]:
    """The temperature that the task asks for (None: it does not say), and in which words."""
    do_sample, temperature = settings.get("do_sample"), settings.get("temperature")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise ConfigurationError(f"do_sample must be true or false, got {shown(do_sample)}.")
    if temperature is not None:
        _number("temperature", temperature)
    if do_sample is False:
        return 0.0, "do_sample=False"
    if do_sample and temperature == 0:
        raise ConfigurationError("do_sample=True contradicts temperature=0: give one of them.")
    return (None if temperature is None else float(temperature)), f"temperature={temperature}"


def _number(name: str, value: Any) -> None:
    real = isinstance(value, float) or is_whole(value)
    if not real or not math.isfinite(value) or (value < 0 and name != "top_k"):
        raise ConfigurationError(f"{name} must be a number of at least 0, got {shown(value)}.")


def _plain(value: Any) -> str:
    return "null" if value is None else f"{value:g}"


def before_stops(text: str, until: str | Sequence[str] | None) -> str:
    """The text up to its first stop string, as a model of the harness returns it."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop:
            text = text.split(stop, maxsplit=1)[0]
    return text
