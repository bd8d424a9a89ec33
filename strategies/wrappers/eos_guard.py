"""No early end."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Source, Wrapper


class EosGuard(Wrapper):
    """Hold back an end of sequence while an open target stands to its left.

    With any unmasking policy. The leftmost open target is never held back, so it always ends.
    """

    name: ClassVar[str] = "eos_guard"
    rule: ClassVar[str] = "i is not eligible if x_i is an end of sequence and some open j < i."
    sources: ClassVar[tuple[Source, ...]] = (
        Source("ours", "under the condition at which LLaDA2's sampler stops"),
        Source(
            "LLaDA's `confidence_eos_eot_inf`",
            "which puts ends of sequence last instead",
            arxiv="2502.09992",
        ),
    )
    needs: ClassVar[tuple[str, ...]] = ("the candidates alone",)

    def restrict(self, state: DecodingState, observation: Observation) -> Tensor:
        ends = observation.tokens.new_tensor(state.facts.eos_token_ids)
        is_end = (observation.tokens[..., None] == ends).any(-1)
        before = state.masked.long().cumsum(1) - state.masked.long()
        return ~(is_end & (observation.positions.gather(before) > 0))
