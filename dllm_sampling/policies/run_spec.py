"""What the policies of a run are asked.

Discovery asks installed plugins which classes they offer (`plugins.offers`). A run asks its own policies, by
name; nobody decorates anything. Each run has its own pluggy manager, so that nothing one run registers is
seen by another. Each docstring is the whole contract of its hook: the reference is made from it, and a test
holds it to its headings.
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
    """Hooks of a run: methods that a policy may define, found by name. Nothing is decorated.

    A method may leave out arguments that it does not need. An unknown argument name is an error, and so is a
    hook that policies of another kind answer. `self` is the policy: frozen settings, which keep what they
    remember of rows in `state.memory(self)`, and what belongs to no row in `state.shared(self)`: its own
    memory.

    **What no hook may change**: the tensors of `state` and `observation`. Policies read; the engine writes.

    **Around a hook.** A method named `wrap_` and a hook's name is a generator with one `yield`. The `yield`
    gives it the hook's answer (of hooks whose answers all count, the list of them), and what it returns takes
    its place and is checked as an answer is. Of several wrappers the later one in the config stands around
    the earlier one.

    **What is wrong with an answer** is a PluginError with the policy's class, its place in the config and
    what is allowed. Type, dtype, shape and device are looked at once; the values of a tensor when the step is
    read back, so that nobody waits for the device. What a hook raises is shown with its name and place.
    """

    @hookspec(firstresult=True)
    def plan_blocks(self, state: DecodingState) -> Tensor | None:
        """Say how many targets each block has, where that is known ahead.

        Called:
            Once a batch, first of all.

        Args:
            state: The canvases, nothing committed. `targets_in_block` is None still.

        Returns:
            Int64 `[batch, blocks]`, from then on `state.targets_in_block`; None where blocks cannot be known
                ahead. The first answer that is not None counts.

        May change:
            Its own memory.

        On a bad answer:
            PluginError at once for another dtype, shape or device, and when the first step is read back for a
            negative number.
        """

    @hookspec
    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        """Get ready for a batch.

        Called:
            Once a batch, after `plan_blocks` and before the first `plan_region`.

        Args:
            state: The canvases, nothing committed.
            facts: What may be known of the model, its tokenizer among them.

        Returns:
            Nothing.

        May change:
            Its own memory. It may raise ConfigurationError for settings that do not suit the model or the
            canvases.

        On a bad answer:
            An answer is ignored.
        """

    @hookspec(firstresult=True)
    def plan_region(self, state: DecodingState) -> Region | None:
        """Offer the positions that may be written or read now.

        Called:
            Every step, first.

        Args:
            state: The canvases as the last step left them.

        Returns:
            The region, `Positions` or columns `[batch, width]` padded with -1, at least one open target of
                some row among them. With `starts_block=True` it starts a block; the first one of a run always
                does. What lies behind a row's last target is taken out. The first answer that is not None
                counts.

        May change:
            Its own memory.

        On a bad answer:
            PluginError at once for None, another type, dtype or shape, an empty region or a span that is no
            slice of the canvas; when the step is read back for a column that is outside the canvas or given
            twice, for a block that `plan_blocks` does not have, and for a region without an open target.
        """

    @hookspec
    def block_started(self, state: DecodingState, region: Region) -> None:
        """Get ready for a block.

        Called:
            Once a block, after the `plan_region` that starts it and before its first `plan_forward`.

        Args:
            state: The canvases; the clocks of the block are 0.
            region: The first region of the block.

        Returns:
            Nothing.

        May change:
            Its own memory.

        On a bad answer:
            An answer is ignored.
        """

    @hookspec(firstresult=True)
    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan | None:
        """Choose the positions that this forward recomputes.

        Called:
            Every step, after `plan_region`.

        Args:
            state: The canvases as the last step left them.
            region: The region of the step.

        Returns:
            The plan, `Positions` or columns `[batch, width]` padded with -1, the region's open targets among
                them. The first one of a run must be a refresh. The first answer that is not None counts.

        May change:
            Its own memory.

        On a bad answer:
            PluginError at once for None, another type, dtype or shape, an empty plan or a slice outside the
            canvas; when the step is read back for a column outside the canvas or given twice. DecodingError
            at once where the first plan is no refresh, and when the step is read back where none of a row's
            open targets was computed and a commit was due.
        """

    @hookspec
    def canvases(self, state: DecodingState, plan: ForwardPlan) -> Mapping[str, Tensor]:
        """Add further canvases to the forward, with other tokens at the same positions.

        Their logits are `observation.branches`. Each has keys and values of its own, and what is computed for
        it is counted in `positions_computed`.

        Called:
            Every step, after `plan_forward` and before the forward.

        Args:
            state: The canvases as the last step left them.
            plan: What the forward computes, of every canvas.

        Returns:
            Tokens by name, int64 `[batch, length]`. Every answer counts. Where keys and values are stored, a
                run has as many canvases in every step.

        May change:
            Its own memory. The forward computes the further canvases, too.

        On a bad answer:
            PluginError at once for what is no mapping of names to tensors, another dtype, shape or device, a
            name that two policies use, or another number of canvases than the run began with; when the step
            is read back for an id outside the vocabulary.
        """
        raise NotImplementedError

    @hookspec
    def restrict(self, state: DecodingState, observation: Observation) -> Tensor:
        """Rule positions out before the unmasking policy sees them.

        A forced commit may still fall on one, where nothing else is left; `forbid` binds that, too.

        Called:
            Every step, after the forward and the logits transforms.

        Args:
            state: The canvases, before the step is committed.
            observation: What the forward shows of the region, an entry for each of its positions.

        Returns:
            Bool `[batch, region]`, true where a position may be committed. Every answer counts, and a
                position stays eligible where all are true.

        May change:
            Its own memory. It can make fewer positions eligible, never more.

        On a bad answer:
            PluginError at once for another dtype, shape or device.
        """
        raise NotImplementedError

    @hookspec
    def forbid(self, state: DecodingState, observation: Observation) -> Tensor:
        """Keep positions from being committed in this step, by the engine too.

        Called:
            Every step, after `restrict`. Each policy answers for itself: this hook cannot be wrapped.

        Args:
            state: The canvases, before the step is committed.
            observation: What the forward shows of the region, an entry for each of its positions.

        Returns:
            Bool `[batch, region]`, true where nothing may be committed now. Every answer counts, and a
                position is forbidden where any is true.

        May change:
            Its own memory. It can make fewer positions eligible, never more.

        On a bad answer:
            PluginError at once for another dtype, shape or device; when the step is read back for a row that
            has no idle steps left and nothing to commit, with the row and the policy.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision | None:
        """Choose the positions that are committed, and what else is done to the region.

        Called:
            Every step, after `restrict` and `forbid`.

        Args:
            state: The canvases, before the step is committed.
            observation: What the forward shows of the region, an entry for each of its positions.

        Returns:
            Bool `[batch, region]`, true where the candidate is committed, or a Decision. What is not eligible
                is left out of it, and the progress guard stands behind it: a row that nets no commit and may
                not wait has its remasks dropped and its best eligible position committed, counted as forced.
                The first answer that is not None counts.

        May change:
            Its own memory.

        On a bad answer:
            PluginError at once for None, another type, dtype, shape or device; when the step is read back for
            an id outside the vocabulary. Ids that may never be committed are replaced by the candidates.
        """

    @hookspec
    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        """See what was done.

        Called:
            Every step, after the decision was applied and before the step is read back.

        Args:
            state: The canvases with the decision applied; what the host knows of them (`next_open`,
                `carried`) is still that of the step before.
            observation: What the forward showed, as it was.
            decision: What was done, `[batch, region]`, forced commits included.

        Returns:
            Nothing.

        May change:
            Its own memory. `state.carry` sends integers along with the read-back that follows.

        On a bad answer:
            An answer is ignored.
        """

    @hookspec
    def block_finished(self, state: DecodingState, region: Region) -> None:
        """See a block end.

        Called:
            Once a block: when a later region starts the next one, or behind the last step of the batch.

        Args:
            state: The canvases, the block's last step applied; no row is left at the end of the batch.
            region: The last region of the block.

        Returns:
            Nothing.

        May change:
            Its own memory.

        On a bad answer:
            An answer is ignored.
        """

    @hookspec
    def rows_selected(self, state: DecodingState, rows: Tensor) -> None:
        """Follow rows that leave the batch.

        Called:
            Each time rows leave and others stay, behind a step.

        Args:
            state: The canvases that stay. What is in `state.memory(self)` is that of the rows that stay
                already.
            rows: Int64 `[rows that stay]`, their indices in the batch as it was.

        Returns:
            Nothing.

        May change:
            Its own memory: what it keeps of single rows in `state.shared(self)` is to be re-indexed here.

        On a bad answer:
            An answer is ignored.
        """

    @hookspec
    def end(self, state: DecodingState, result: GenerationResult) -> None:
        """See the batch end.

        Called:
            Once a batch, after its last step, before `close`. It is not, where the run breaks off.

        Args:
            state: No row is left in it.
            result: What came of the batch.

        Returns:
            Nothing.

        May change:
            Nothing: the batch is done.

        On a bad answer:
            An answer is ignored.
        """

    @hookspec
    def close(self, state: DecodingState) -> None:
        """Let go of what was opened for the batch.

        Called:
            Once a batch, last of all, however it ends: after `end`, after an error, `begin`'s own too, or
            when a run is left. Every policy is told, also where another one fails. Each policy answers for
            itself: this hook cannot be wrapped.

        Args:
            state: The canvases as the batch left them.

        Returns:
            Nothing.

        May change:
            What the policy holds outside the run, such as a file.

        On a bad answer:
            An answer is ignored.
        """


def hook_names(spec: type) -> set[str]:
    """The hooks a specification defines."""
    return {name for name in vars(spec) if not name.startswith("_")}
