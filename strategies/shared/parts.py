"""What composites share."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from dllm_sampling import (
    Decision,
    DecodingState,
    NestedUnmaskingPolicy,
    Observation,
    PluginError,
    UnmaskingPolicy,
)

Policies = Annotated[tuple[NestedUnmaskingPolicy, ...], Field(min_length=1)]


def masks_of(policy: UnmaskingPolicy, state: DecodingState, observation: Observation) -> Tensor:
    """What a policy commits, as a mask; an error for one that does more than commit."""
    chosen = policy.select(state, observation)
    if isinstance(chosen, Tensor):
        return chosen
    raise PluginError(f"{policy.name} returns a Decision: only policies that return a mask can be combined.")


def and_also(chosen: Tensor | Decision, more: Tensor) -> Tensor | Decision:
    """What a policy chose, with `more` of the region committed besides; whatever else it does stays."""
    if isinstance(chosen, Decision):
        return replace(chosen, commit=chosen.commit | more)
    return chosen | more
