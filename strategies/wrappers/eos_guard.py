"""No early end."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dllm_sampling import DecodingState, Observation, Wrapper


class EosGuard(Wrapper):
    """Hold back an end of sequence while an open target stands to its left.

    With any unmasking policy. The leftmost open target is never held back, so it always ends. Needs the
    candidates alone.
    Rule: i is not eligible if x_i is an end of sequence and some open j < i.
    Source: ours. LLaDA2's sampler stops under the same condition; LLaDA's `confidence_eos_eot_inf`
    (arXiv:2502.09992) puts ends of sequence last instead.
    """

    name: ClassVar[str] = "eos_guard"

    def restrict(self, state: DecodingState, observation: Observation) -> Tensor:
        ends = observation.tokens.new_tensor(state.facts.eos_token_ids)
        is_end = (observation.tokens[..., None] == ends).any(-1)
        before = state.masked.long().cumsum(1) - state.masked.long()
        return ~(is_end & (observation.positions.gather(before) > 0))
