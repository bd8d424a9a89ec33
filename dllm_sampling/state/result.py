"""What a call returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from transformers.utils.generic import ModelOutput

# A policy with a larger share of forced commits hardly ever chose what was written.
MOST_FORCED = 0.5


@dataclass
class GenerationResult(ModelOutput):
    """The canvases after decoding, and what it cost. Counted, never estimated.

    As every `ModelOutput` of transformers: `result.sequences`, `result["sequences"]`, `result[0]`,
    `result.to_tuple()` and `**result` in the order below.

    Attributes:
        sequences: Int64 `[batch, prompt + gen]`, prompt included, shorter prompts padded on the left
            (`infill`: `[batch, canvas]`). Targets after the first end of sequence are padding.
        forward_of_position: Int64 `[batch, gen]` (`infill`: `[batch, canvas]`), the 0-based forward of its
            batch that committed each target, -1 where none did.
        confidence: Float32, the same shape: the probability of the token at commit, NaN where none was.
        tokens: Int64 `[batch]`, targets up to and including the first end of sequence.
        row_forwards: Int64 `[batch]`, forwards in which the row had an open target in its region.
        row_forced: Int64 `[batch]`, commits that the engine made because the policy made none.
        row_remasks: Int64 `[batch]`, committed positions that were masked again.
        row_refreshes: Int64 `[batch]`, those of `row_forwards` over the whole canvas.
        row_positions_computed: Int64 `[batch]`, positions computed for the row while it was in the batch,
            forwards in which it was idle included: they add up to `positions_computed`.
        row_commits: Int64 `[batch]`, commits, those behind the first end of sequence and those of positions
            that were masked again included; forced ones are among them.
        forwards: Model calls.
        refreshes: Model calls over the whole canvas.
        positions_computed: Those of every forward and row, padding and further canvases included.
        seconds: Time of the steps, each measured to its read-back, at which the device is done.
        refresh_seconds: The part of it in steps whose forward was a refresh.
        compile_seconds: What compiling forwards took; it is not in `seconds`.
        execution: How forwards were run, in words.
        texts: What was written, by the tokenizer; empty where there is none.
    """

    sequences: Tensor
    forward_of_position: Tensor
    confidence: Tensor
    tokens: Tensor
    row_forwards: Tensor
    row_forced: Tensor
    row_remasks: Tensor
    row_refreshes: Tensor
    row_positions_computed: Tensor
    row_commits: Tensor
    forwards: int = 0
    refreshes: int = 0
    positions_computed: int = 0
    seconds: float = 0.0
    refresh_seconds: float = 0.0
    compile_seconds: float = 0.0
    execution: str = "eager"
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing: setting the fields made them items; ModelOutput's own check wants None as defaults."""

    @property
    def forced(self) -> int:
        """Commits that the engine made because the policy made none."""
        return int(self.row_forced.sum())

    @property
    def commits(self) -> int:
        """All commits."""
        return int(self.row_commits.sum())

    @property
    def forced_share(self) -> float:
        """Forced commits over all commits; 0 where there were none."""
        return self.forced / max(self.commits, 1)

    @property
    def remasks(self) -> int:
        """Committed positions that were masked again."""
        return int(self.row_remasks.sum())

    @property
    def tokens_per_forward(self) -> float:
        """Tokens over row forwards, each summed before dividing. NaN where nothing was decoded."""
        forwards = int(self.row_forwards.sum())
        return int(self.tokens.sum()) / forwards if forwards else float("nan")
