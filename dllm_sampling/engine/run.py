"""The steps of one call, over all its batches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cached_property
from types import TracebackType

import torch
from torch import Tensor
from typing_extensions import Self

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.engine import prompts as prompting
from dllm_sampling.engine.batch_run import BatchRun
from dllm_sampling.engine.listener import Listener
from dllm_sampling.engine.outcome import Outcome, merged
from dllm_sampling.engine.prompts import Canvas
from dllm_sampling.engine.step import Step
from dllm_sampling.errors import DecodingError, PromptError, shown
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.result import GenerationResult


class Run(Iterator[Step]):
    """The steps of one call, over all its batches; `result` once they are done.

    Left before its end it is to be closed: `with sampler.steps(...) as run:`, or `close()`.
    """

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
        self._model = model
        self._canvases = canvases
        self._prompt_width = width
        self._seed = seed
        self._stop_at_eos = stop_at_eos
        self._listener = Listener()
        self._outcomes: list[Outcome] = []
        self._batch: BatchRun | None = None
        self._done = False
        self._iterator = self._all_steps()

    def __next__(self) -> Step:
        with torch.no_grad():
            return next(self._iterator)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the run where it is; the policies' `close` is called if a batch was being decoded."""
        self._iterator.close()

    @property
    def result(self) -> GenerationResult:
        """The result, always the same one; an error while steps are left."""
        if not self._done:
            raise RuntimeError("the run has steps left: iterate to the end, or call finish().")
        return self._result

    @cached_property
    def _result(self) -> GenerationResult:
        result = merged(self._outcomes, self._canvases, self._prompt_width, self._model.facts)
        return replace(result, execution=str(self._model.execution))

    def finish(self, listener: Listener | None = None) -> GenerationResult:
        """Take the steps that are left.

        Args:
            listener: What follows them; nothing by default.

        Returns:
            What came of the run.
        """
        listener = self._listener = listener or Listener()
        if self._batch is not None:
            self._batch.listener = listener
        try:
            listener.begin(self._canvases, self._prompt_width or 0)
            for _ in self:
                pass
            listener.rest(self.result)
            return self.result
        finally:
            listener.end()

    def forward(self, tokens: Tensor) -> Observation:
        """A further forward of the step at hand, for those who own the loop.

        Every position is computed; keys and values of the run are neither read nor written, and logits
        transforms are not applied. It counts: in `forwards` and `positions_computed` of the result, and in
        `row_forwards` of the rows with an open target in the region.

        Args:
            tokens: `[batch, length]`, what to read; `step.state.tokens` for the canvases as they are.

        Returns:
            What is predicted at the positions of the step's region.

        Raises:
            DecodingError: There is no step at hand: before the first, or after the last.
            PromptError: The tokens have another shape or dtype.
        """
        if self._batch is None:
            raise DecodingError("Run.forward needs a step at hand: call it inside `for step in run`.")
        state = self._batch.state
        fits = isinstance(tokens, Tensor) and tokens.dtype == torch.long
        if not fits or tokens.shape != state.tokens.shape:
            raise PromptError(
                f"tokens must be integers {list(state.tokens.shape)}, as step.state.tokens are, "
                f"got {shown(tokens)}."
            )
        return self._batch.forward_beside(tokens)

    def _all_steps(self) -> Generator[Step, None, None]:
        for batch in prompting.batches(self._canvases, self._settings.batch_size, self._model.facts):
            try:
                self._batch = BatchRun(
                    self._model,
                    self._settings,
                    batch,
                    self._prompt_width,
                    self._seed,
                    self._stop_at_eos,
                    self._listener,
                )
                self._outcomes.append(self._batch.outcome)
                yield from self._batch.steps()
            except torch.OutOfMemoryError as error:
                rows, length = batch.tokens.shape
                raise DecodingError(
                    f"out of memory with {rows} rows of {length} positions: lower batch_size (now "
                    f"{self._settings.batch_size}) or gen_length, load the weights in bfloat16, or take a "
                    f"larger device. {error}"
                ) from error
            finally:
                self._batch = None
        self._done = True
