"""Blocks that end where a sentence does."""

from __future__ import annotations

from typing import ClassVar

import torch
from dllm_sampling.strategies.shared.ragged import region_of_rows
from dllm_sampling.strategies.shared.token_ids import token_id
from pydantic import Field
from torch import Tensor

from dllm_sampling import BlockSchedule, DecodingState, ModelFacts, Observation, Region, Source


class AdaBlock(BlockSchedule):
    """End each block at the delimiter that its first forward predicts most surely, if surely enough.

    The first forward of a block shows a wide window; what lies behind the chosen end is not committed.
    Rows have ends of their own and wait for each other before the next block.
    """

    name: ClassVar[str] = "adablock"
    rule: ClassVar[str] = (
        "among the next window positions whose candidate is a delimiter, the most confident one, if its\n"
        "confidence >= threshold, is the block's last; else the block has `block_length`."
    )
    sources: ClassVar[tuple[Source, ...]] = (
        Source("AdaBlock-dLLM", "and its code; threshold 0.5 for Dream", arxiv="2509.26432"),
    )
    needs: ClassVar[tuple[str, ...]] = (
        "candidates and confidences",
        "`restrict`",
        "a region of each row",
        "ends carried by the read-back",
    )
    block_length: int = Field(32, ge=1, description="Positions in a block without a sure delimiter.")
    threshold: float = Field(0.3, ge=0, le=1, description="Least confidence of a delimiter.")
    share: float = Field(0.25, gt=0, le=1, description="Window as a share of the row's targets.")
    delimiters: tuple[int | str, ...] = Field(("\n",), min_length=1, description="Ids or texts of tokens.")

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        ids = [token_id(token, facts, "delimiters") for token in self.delimiters]
        state.shared(self)["ids"] = torch.tensor(ids, device=facts.device)

    def plan_region(self, state: DecodingState) -> Region:
        shared = state.shared(self)
        bounds = state.carried(self) or [[0, 0]] * state.batch
        shared["first"] = all(at >= end for at, (_, end) in zip(state.next_open, bounds, strict=True))
        if shared["first"]:
            shared["block"] = shared.get("block", -1) + 1
            shown = [max(self._window(end, state), self.block_length) for end in state.row_ends]
            begun = zip(state.next_open, shown, state.row_ends, strict=True)
            bounds = [[min(at, end), min(at + wide, end)] for at, wide, end in begun]
        starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
        return region_of_rows(state, starts, ends, shared["block"], shared["first"])

    def _window(self, end: int, state: DecodingState) -> int:
        return int(self.share * (end - state.first_target))

    def restrict(self, state: DecodingState, observation: Observation) -> Tensor:
        if not state.shared(self)["first"]:
            return torch.ones_like(observation.masked)
        ids, positions = state.shared(self)["ids"], observation.positions.columns
        start = observation.positions.first(state.length)
        window = state.on_device([[self._window(end, state)] for end in state.row_ends])
        ends_here = (observation.tokens[..., None] == ids).any(-1)
        ends_here = ends_here & observation.eligible & (positions < start + window)
        score = observation.log_confidence.masked_fill(~ends_here, -torch.inf)
        best = score.argmax(1, keepdim=True)
        sure = score.gather(1, best).exp() >= self.threshold
        sure = sure & ends_here.any(1, keepdim=True)
        end = torch.where(sure, positions.gather(1, best) + 1, start + self.block_length)
        end = end.minimum(state.end_of_targets[:, None])
        state.carry(self, torch.cat([start, end], 1))
        return positions < end
