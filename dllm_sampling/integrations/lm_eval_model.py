r"""A sampler as a model of EleutherAI's lm-evaluation-harness.

    dllm-sampling harness run --tasks gsm8k --num_fewshot 5 --batch_size 8 \
        --model_args config=run.yaml,cache=dual,unmasking.threshold=0.8

Importing this module registers the model `dllm_sampling`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from dllm_sampling.config.overrides import set_setting
from dllm_sampling.config.run_config import RunConfig
from dllm_sampling.engine import prompts
from dllm_sampling.engine.sampler import Sampler
from dllm_sampling.errors import ConfigurationError, StudyError
from dllm_sampling.inputs import messages
from dllm_sampling.integrations import lm_eval_settings as generation_settings
from dllm_sampling.integrations.lm_eval_settings import before_stops

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise StudyError("the harness is not installed: pip install 'dllm-sampling[harness]'") from None

NAME = "dllm_sampling"
# What the harness passes when its user names no batch size.
_UNNAMED_BATCH_SIZES = (None, 1, "1")


@register_model(NAME)
class SamplerLM(LM):  # type: ignore[misc]  # the harness carries no types
    """Answers `generate_until` requests with a sampler.

    config: a run as .yaml, .toml or .json. Every other argument overrides a setting of it, as `--set`
    does: `cache=dual`, `unmasking.threshold=0.8`, `model.source=...`.
    batch_size: of the harness; 1, its default, leaves the config's.
    device: of the harness, where the config names none and the machine has it.

    Targets: the config's gen_length where it is given, else the task's max_gen_toks (or max_new_tokens,
    max_tokens, max_completion_tokens), else the default. Prompts stand as the task makes them unless the
    config says chat_template or the harness is given --apply_chat_template.

    Every generation setting of a task or of --gen_kwargs is honoured or refused. Raises ConfigurationError
    for a setting that does not exist, for do_sample, temperature, top_p or top_k that are not the sampler's,
    and for beams, penalties and the like.
    """

    def __init__(
        self,
        config: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        data = RunConfig.read_data(config) if config is not None else {}
        for path, value in settings.items():
            set_setting(RunConfig, data, path, value)
        if batch_size not in _UNNAMED_BATCH_SIZES:
            if not str(batch_size).isdigit():
                raise ConfigurationError(f"batch_size must be a number, got {batch_size!r}.")
            set_setting(RunConfig, data, "batch_size", int(str(batch_size)))
        # The harness passes cuda:0 when its user names no device, and expects a model to do without.
        has_it = device is not None and (not device.startswith("cuda") or torch.cuda.is_available())
        if has_it and "device" not in (data.get("model") or {}):
            set_setting(RunConfig, data, "model.device", device)
        self._gen_length_is_given = "gen_length" in data
        data.setdefault("chat_template", False)
        self.config = RunConfig.of(data)
        self.sampler = Sampler.from_config(self.config.model.load(), self.config.sampler)
        self._facts = self.sampler.model.facts
        self._is_rendered = False
        self.tokens = 0
        self.row_forwards = 0
        self.seconds = 0.0

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts, each cut at its first stop string."""
        from tqdm import tqdm

        answers: dict[int, str] = {}
        settings = [request.args[1] for request in requests]
        for one in settings:
            generation_settings.check(one)
            generation_settings.check_sampling(one, self.config.sampler.sampling)
        lengths = [self._gen_length(one) for one in settings]
        with tqdm(total=len(requests), desc=NAME, disable=disable_tqdm) as bar:
            for length in sorted(set(lengths)):
                rows = [i for i, own in enumerate(lengths) if own == length]
                for places, texts in self._decoded({i: requests[i].args[0] for i in rows}, length):
                    for i, text in zip(places, texts, strict=True):
                        answers[i] = before_stops(text, settings[i].get("until"))
                        self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                    bar.update(len(places))
        return [answers[i] for i in range(len(requests))]

    def _decoded(self, contexts: Mapping[int, str], gen_length: int) -> Any:
        """Places and texts, a batch at a time, the longest prompts first."""
        ids = self._encoded(contexts)
        canvases = prompts.canvases_to_generate(ids, gen_length, self._facts, list(contexts))
        ordered = iter(prompts.longest_first(canvases))
        while batch := list(itertools.islice(ordered, self.config.sampler.batch_size)):
            places = [canvas.place for canvas in batch]
            result = self.sampler.generate(
                [ids[canvas.index] for canvas in batch],
                gen_length=gen_length,
                seed=self.config.seed,
                places=places,
            )
            self.tokens += int(result.tokens.sum())
            self.row_forwards += int(result.row_forwards.sum())
            self.seconds += result.seconds
            yield places, result.texts

    def _encoded(self, contexts: Mapping[int, str]) -> list[list[int]]:
        if not self._is_rendered:
            template = self.config.chat_template
            return [prompts.encode_one(text, i, self._facts, template) for i, text in contexts.items()]
        found = []
        for i, text in contexts.items():
            prompts.checked(text, f"prompt {i}")
            found.append(prompts.tokenised(text, f"prompt {i}", self._facts, special=False))
        return found

    def _gen_length(self, settings: Mapping[str, Any]) -> int:
        asked = generation_settings.length(settings)
        return self.config.gen_length if self._gen_length_is_given or asked is None else asked

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Not what a sampler does."""
        raise ConfigurationError("a sampler writes text: only generate_until tasks can be run with it.")

    loglikelihood_rolling = loglikelihood

    # Chat templates ----------------------------------------------------------------------------

    def _tokenizer(self) -> Any:
        if self._facts.tokenizer is None:
            raise ConfigurationError("the checkpoint has no tokenizer.")
        return self._facts.tokenizer

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as the text that is tokenised as it stands; its last message may be left open."""
        self._is_rendered = True
        chat = messages.checked(chat_history, "chat")
        render = messages.rendered if add_generation_prompt else messages.continued
        return render(self._tokenizer(), chat, "chat")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The checkpoint's template."""
        return str(self._tokenizer().chat_template or "")

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return str(self._tokenizer().name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: the whole run, and what it cost."""
        return {
            "dllm_sampling": self.config.to_dict(),
            "tokens": self.tokens,
            "row_forwards": self.row_forwards,
            "tokens_per_forward": self.tokens / self.row_forwards if self.row_forwards else None,
            "seconds": self.seconds,
        }


def main(arguments: Sequence[str]) -> None:
    """The harness's own command line, with our model by default."""
    from lm_eval.__main__ import cli_evaluate

    given = list(arguments)
    if given[:1] == ["run"] and not any(a == "--model" or a.startswith("--model=") for a in given):
        given[1:1] = ["--model", NAME]
    sys.argv = ["lm_eval", *given]
    cli_evaluate()
