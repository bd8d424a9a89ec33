"""Those who follow a run: transformers' streamers get its text, its stopping criteria may end rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import (
    StoppingCriteria,
    StoppingCriteriaList,
)

from dllm_sampling.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from dllm_sampling.engine.prompts import Canvas
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.observation import Observation
    from dllm_sampling.state.region import Region
    from dllm_sampling.state.result import GenerationResult


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
    ) -> None:
        if streamer is not None and not isinstance(streamer, Streamer):
            raise ConfigurationError(f"streamer must have put and end, got {shown(streamer)}.")
        criteria = () if criteria is None else criteria
        if not isinstance(criteria, (list, tuple)) or not all(map(callable, criteria)):
            raise ConfigurationError(f"stopping_criteria must be a list of criteria, got {shown(criteria)}.")
        self._streamer: Any = streamer
        self._drafts = hasattr(streamer, "put_draft")
        self._criteria = StoppingCriteriaList(criteria)
        self._width = 0
        self._sent = self._asked = 0

    def begin(self, canvases: Sequence[Canvas], prompt_width: int) -> None:
        """Before the first step: what is decoded, and the columns of the prompts in the call."""
        self._width = prompt_width
        if self._streamer is None:
            return
        if len(canvases) != 1:
            raise ConfigurationError(f"a streamer takes the text of one prompt; {len(canvases)} were given.")
        self._streamer.put(canvases[0].tokens[None, : canvases[0].before])

    def after_step(self, state: DecodingState, region: Region, observation: Observation) -> None:
        """Show what a step did, and end the rows that a stopping criterion stops."""
        if self._streamer is None and not self._criteria:
            return
        if self._drafts:
            self._put_draft(state, region, observation)
        final = _final(state, region)
        if self._streamer is not None and final > state.first_target + self._sent:
            self._streamer.put(state.tokens[:1, state.first_target + self._sent : final].cpu())
            self._sent = final - state.first_target
        if state.forward_index == 1:  # the first step of a batch
            self._asked = state.first_target
        if not self._criteria or final <= self._asked:
            return
        self._asked = final
        # The batch is as wide as its own longest prompt, which may be shorter than that of the call.
        shown = torch.nn.functional.pad(
            state.tokens[:, :final],
            (self._width - state.first_target, 0),
            value=state.facts.pad_token_id,
        )
        state.end_rows(self._criteria(shown, None))

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
        inside = region.positions.inside[0]
        columns = region.positions.columns[0][inside]
        canvas, still_open = state.tokens[0].clone(), state.masked[0][columns]
        canvas[columns] = torch.where(still_open, observation.tokens[0][inside], canvas[columns])
        self._streamer.put_draft(canvas[None, state.first_target + self._sent : columns[-1] + 1].cpu())


def _final(state: DecodingState, region: Region) -> int:
    """The column before which the text of every open row stays as it is; 0 where no row is open."""
    start: int
    stop: int
    if region.span is not None:
        start, stop = region.span.start, region.span.stop
    else:
        bounds = [region.positions.first(state.length).amin(), region.positions.end().amax()]
        start, stop = torch.stack(bounds).tolist()
    leftmost_open = min(state.next_open)
    if leftmost_open == state.length:
        return 0
    return min(stop if leftmost_open >= stop else start, leftmost_open)
