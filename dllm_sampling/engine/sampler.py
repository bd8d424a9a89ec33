"""A choice of policies that decodes prompts and fills canvases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.engine import prompts as prompting
from dllm_sampling.engine import run_hooks
from dllm_sampling.engine.listener import Listener
from dllm_sampling.engine.prompts import Prompts
from dllm_sampling.engine.run import Run
from dllm_sampling.errors import ConfigurationError, shown
from dllm_sampling.inputs.arguments import flag, whole
from dllm_sampling.policies.kinds import (
    BlockSchedule,
    CachePolicy,
    LogitsTransform,
    Observer,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.state.result import GenerationResult
from dllm_sampling.state.sampling import Sampling

if TYPE_CHECKING:
    from transformers import StoppingCriteria

    from dllm_sampling.engine.listener import Streamer


class Sampler:
    """Decodes with one choice of policies, given as names, mappings or instances.

    A sampler keeps no state between calls.

    Args:
        model: A loaded backbone.
        unmasking: The policy that decides which positions are committed.
        cache: The policy that decides which positions each forward recomputes.
        schedule: The policy that decides which span is worked on.
        transforms: Policies that change the logits, applied in order.
        wrappers: Policies that change what others do; a later one stands around an earlier one.
        observers: Policies that watch.
        sampling: How candidates are drawn.
        stop_at_eos: Whether a row is finished when an end of sequence is committed and nothing before it is
            masked.
        batch_size: Rows decoded together.

    Raises:
        ConfigurationError: Something is given that cannot work.

    Attributes:
        model: The backbone.
        settings: Every setting, defaults included.
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
        """A sampler from plain data.

        Args:
            model: A loaded backbone.
            config: What `config` returned, or the `sampler` section of a file.

        Returns:
            The sampler.

        Raises:
            ConfigurationError: Something in it is unknown or cannot work.
        """
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
        """Write tokens behind each prompt.

        Args:
            prompts: One prompt or a list of them. A prompt is a string, a chat (a list of messages with role
                and content), token ids (a list, or a tensor or array `[prompt]`), or what a tokenizer
                returns. Several may also be a tensor or array of integers `[batch, prompt]` padded on the
                left, with its attention_mask, or what a tokenizer returns for several texts.
            gen_length: Tokens to write.
            attention_mask: Of a padded tensor of prompts, the same shape; 0 at padding.
            seed: Of the noise at temperature above 0 and of random policies.
            places: The prompts' places in a larger call of which this is a part; their noise is then the same
                as there. By default 0, 1, 2, ...
            chat_template: Whether a string becomes a user message where the checkpoint has a template.
            streamer: One of transformers', for one prompt. It gets the prompt, then text as soon as it is
                final, from left to right; `put_draft`, where it has that, gets the draft after every step.
            stopping_criteria: Those of transformers. They are asked when a block is done, with the text so
                far and None; what a row they stop leaves open becomes padding.

        Returns:
            The texts, and what they cost.

        Raises:
            PromptError: A prompt is none, is empty or is too long; the error names it.
            ConfigurationError: Another argument cannot work.
            DecodingError: The memory of the device is used up, or the logits are broken.
            PluginError: A policy failed or answered something wrong.
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
        """As `generate`, a step at a time.

        Args:
            prompts: As in `generate`.
            gen_length: As in `generate`.
            attention_mask: As in `generate`.
            seed: As in `generate`.
            places: As in `generate`.
            chat_template: As in `generate`.

        Returns:
            The run. Iterate, and read `result` when it ends.

        Raises:
            PromptError: As in `generate`.
            ConfigurationError: As in `generate`.
        """
        facts = self.model.facts
        seed = whole("seed", seed)
        ids = prompting.encode(prompts, attention_mask, facts, chat_template)
        canvases = prompting.canvases_to_generate(ids, gen_length, facts, places)
        width = prompting.width(prompts, ids)
        return Run(self.settings, self.model, canvases, width, seed, self.settings.stop_at_eos)

    def infill(
        self,
        canvas: Tensor | Sequence[prompting.Ids],
        targets: Tensor | Sequence[Any] | None = None,
        *,
        seed: int = 0,
        stop_at_eos: bool = False,
    ) -> GenerationResult:
        """Write the targets of canvases, which may lie anywhere. Given positions never change.

        Args:
            canvas: Token ids, a tensor or array `[batch, length]` or a list of rows.
            targets: True or False (1 or 0), the canvas's shape; by default every mask id.
            seed: Of the noise at temperature above 0 and of random policies.
            stop_at_eos: Whether a row is finished when an end of sequence is committed and nothing before it
                is masked.

        Returns:
            The canvases, filled, and what they cost.

        Raises:
            PromptError: A canvas is none or has no target; the error names it.
            ConfigurationError: Another argument cannot work.
        """
        seed, stop_at_eos = whole("seed", seed), flag("stop_at_eos", stop_at_eos)
        canvases = prompting.canvases_to_infill(canvas, targets, self.model.facts)
        return Run(self.settings, self.model, canvases, None, seed, stop_at_eos).finish()
