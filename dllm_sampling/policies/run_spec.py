"""The hook interface of a run: what its policies are asked.

Two managers are at work, both pluggy. Discovery asks installed plugins which classes they offer
(`plugins.offers`). A run asks its own policies (`RunSpec`): each has its own manager, so that nothing
one run registers is seen by another. Implementations are found by name; nobody decorates anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dllm_sampling.state.decision import Decision
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.facts import ModelFacts
    from dllm_sampling.state.observation import Observation
    from dllm_sampling.state.plan import ForwardPlan
    from dllm_sampling.state.region import Region
    from dllm_sampling.state.result import GenerationResult


PROJECT = "dllm_sampling"


HOOK_VERSION = 1


hookspec = pluggy.HookspecMarker(PROJECT)


class RunSpec:
    """Methods that a policy of a run may define.

    A method may leave out arguments that it does not need. A method named `wrap_` and a hook's name is
    a generator with one `yield`, which gives it the hook's result; what it returns replaces that.
    """

    @hookspec(firstresult=True)
    def plan_blocks(self, state: DecodingState) -> Tensor | None:
        """Once a batch, first of all: targets in each block, `[batch, blocks]`, where known."""

    @hookspec
    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        """Once a batch, before the first forward."""

    @hookspec(firstresult=True)
    def plan_region(self, state: DecodingState) -> Region | None:
        """Every step, first: the positions that may be written or read now."""

    @hookspec
    def block_started(self, state: DecodingState, region: Region) -> None:
        """When a region starts a block, before its first forward."""

    @hookspec(firstresult=True)
    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan | None:
        """Every step: the positions this forward recomputes."""

    @hookspec
    def canvases(self, state: DecodingState, plan: ForwardPlan) -> Mapping[str, Tensor]:
        """Every step: tokens `[batch, length]` of further canvases for the same forward, by name.

        Their logits are `observation.branches`. Each has keys and values of its own, so a run that
        stores any must name the same ones in every step. What they compute is counted.
        """
        raise NotImplementedError

    @hookspec
    def restrict(self, state: DecodingState, observation: Observation) -> Tensor:
        """Every step: bool `[batch, region]`; a position stays eligible if every answer allows it."""
        raise NotImplementedError

    @hookspec(firstresult=True)
    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision | None:
        """Every step: which positions to commit, as a mask `[batch, region]` or a Decision."""

    @hookspec
    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        """Every step, last: what was done. `state` is changed, but for the host's counts (`next_open`,
        `carried`), which follow; `observation` is as it was.
        """

    @hookspec
    def block_finished(self, state: DecodingState, region: Region) -> None:
        """When the next region starts a block, or the batch is done: the last region of the block."""

    @hookspec
    def rows_selected(self, state: DecodingState, rows: Tensor) -> None:
        """When rows leave the batch: the indices of those that stay. Memory is already re-indexed."""

    @hookspec
    def end(self, state: DecodingState, result: GenerationResult) -> None:
        """Once a batch, after its last step."""


def hook_names(spec: type) -> set[str]:
    """The hooks a specification defines."""
    return {name for name in vars(spec) if not name.startswith("_")}
