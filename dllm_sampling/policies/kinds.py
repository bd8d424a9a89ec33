"""Base classes for everything a researcher can swap.

A policy is a frozen pydantic model: its fields are its parameters, unknown keys are errors. It keeps
no run state; what it must remember lives in `state.memory(self)`. Every kind has one abstract method;
the hooks of `run_spec.RunSpec` may be defined besides, each a no-op where it is not.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dllm_sampling.errors import ConfigurationError, PluginError, shown, unknown_name
from dllm_sampling.policies.class_checks import check_keeps_nothing, check_methods
from dllm_sampling.policies.named import Named
from dllm_sampling.policies.run_spec import RunSpec, hook_names
from dllm_sampling.policies.source import Source

if TYPE_CHECKING:
    from typing_extensions import Self

    from dllm_sampling.state.decision import Decision
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.observation import Observation
    from dllm_sampling.state.plan import ForwardPlan
    from dllm_sampling.state.region import Region


# What a policy of any kind may watch.
LIFECYCLE = frozenset(
    {"begin", "block_started", "committed", "block_finished", "rows_selected", "end", "close"}
)


class Policy(Named, ABC):
    """Settings that take part in a run. Subclass one of the kinds below, not this.

    What a class says of itself stands beside its name, and is shown by `dllm-sampling strategies` and in the
    catalogue.

    Attributes:
        hooks: Those of `run_spec.RunSpec` that a policy of this kind answers; any may watch the lifecycle.
        own_hooks: A class whose public methods are further hooks, which this policy asks as
            `state.hooks.NAME(argument=...)`. Any policy of the run answers with a method of that name, and a
            wrapper stands around it with `wrap_NAME`; the call gives the list of answers.
        rule: What it does as a formula, in one or two lines.
        sources: Whose rule it is.
        needs: What it asks of the engine beyond the logits of open positions, each in a few words.
        bibtex: Entries to cite, for sources that have no arXiv or openreview id or none that ships.

    Raises:
        PluginError: When a subclass is made, for a method whose name is nearly a hook's, for anything but a
            method under a hook's name, and for attributes that could keep something from one run to the next.
    """

    hooks: ClassVar[frozenset[str]] = frozenset()
    own_hooks: ClassVar[type | None] = None
    rule: ClassVar[str] = ""
    sources: ClassVar[tuple[Source, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    bibtex: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for fact, item in (("sources", Source), ("needs", str)):
            given = getattr(cls, fact)
            if not isinstance(given, tuple) or not all(isinstance(one, item) for one in given):
                raise TypeError(f"{cls.__name__}: {fact} = {given!r} must be a tuple of {item.__name__}.")
        for fact in ("rule", "bibtex"):
            if not isinstance(getattr(cls, fact), str):
                raise TypeError(f"{cls.__name__}: {fact} = {getattr(cls, fact)!r} must be a string.")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        bases = [
            base
            for base in cls.__mro__
            if issubclass(base, Policy) and "kind" in vars(base) and Policy in base.__bases__
        ]
        if cls in bases or not bases:
            return
        answered = LIFECYCLE.union(*(base.hooks | _methods(base) for base in bases))
        check_methods(cls, bases, hook_names(RunSpec), answered)
        check_keeps_nothing(cls)

    def children(self) -> Iterator[tuple[str, Policy]]:
        """The policies held in this one's fields, with their path."""
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, Policy):
                yield field, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{field}[{i}]", v) for i, v in enumerate(value) if isinstance(v, Policy))

    def refuse_without_effect(self, field: str, idle: bool, why: str) -> None:
        """Raise ConfigurationError where `idle` is true and the field is not at its default."""
        value = getattr(self, field)
        if idle and value != type(self).model_fields[field].default:
            raise ConfigurationError(f"{field}={value!r} has no effect {why}.")

    def refuse_above(self, field: str, limit: str) -> None:
        """Raise ConfigurationError where one field is above another that it may only reach."""
        low, high = getattr(self, field), getattr(self, limit)
        if low > high:
            raise ConfigurationError(f"{field}={low!r} must not be above {limit}={high!r}.")

    def detached(self) -> Self:
        """An equal tree in which no object stands twice, so that each slot of a run has its own."""
        update: dict[str, Any] = {}
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, Policy):
                update[field] = value.detached()
            elif isinstance(value, (list, tuple)):
                update[field] = type(value)(v.detached() if isinstance(v, Policy) else v for v in value)
        return self.model_copy(update=update)


def _methods(base: type[Policy]) -> set[str]:
    """What the class of a kind defines for its policies to override."""
    return {name for name, value in vars(base).items() if inspect.isfunction(value) and name[0] != "_"}


class UnmaskingPolicy(Policy, ABC):
    """Decides which of the freshly predicted positions are committed."""

    kind: ClassVar[str] = "unmasking"
    hooks: ClassVar[frozenset[str]] = frozenset({"select", "canvases"})

    @abstractmethod
    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision:
        """Choose the positions that are committed: the hook `select`.

        Where nothing of the answer is eligible, and the row has no idle steps left, the engine commits the
        row's most confident eligible position.

        Args:
            state: The canvases, before the step is committed.
            observation: What the forward shows of the region.

        Returns:
            Bool `[batch, region]`, or a full Decision.
        """

    def idle_steps(self, targets: int) -> int:
        """Say how many steps a row may pass without net progress. None, unless a rule says otherwise.

        A step that commits fewer than it remasks, or as many, costs 1 plus the shortfall.

        Called:
            Once a row, before `plan_blocks`.

        Args:
            targets: Targets of the row.

        Returns:
            An integer from 0 on.

        May change:
            Nothing.

        On a bad answer:
            PluginError at once for another type or a number below 0 or above 2147483647.
        """
        return 0


class CachePolicy(Policy, ABC):
    """Decides which positions each forward recomputes.

    Attributes:
        exact_with: The settings with which it decodes to the same tokens as `none`: an empty mapping for any,
            None where no settings are known to. The conformance suite decodes with them.
    """

    kind: ClassVar[str] = "cache"
    hooks: ClassVar[frozenset[str]] = frozenset({"plan_forward"})
    exact_with: ClassVar[Mapping[str, object] | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.exact_with or ():
            if field not in cls.model_fields:
                raise TypeError(
                    f"{cls.__name__}: exact_with: {unknown_name('field', field, cls.model_fields)}"
                )

    @property
    def exact(self) -> bool:
        """Whether it is known to decode to the same tokens as `none` with these settings."""
        wanted = self.exact_with
        return wanted is not None and all(getattr(self, field) == value for field, value in wanted.items())

    @abstractmethod
    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        """Choose the positions that this forward recomputes: the hook `plan_forward`.

        Args:
            state: The canvases as the last step left them.
            region: The region of the step.

        Returns:
            The plan. The first one of a run must be a refresh.
        """


class BlockSchedule(Policy, ABC):
    """Decides which span is being worked on."""

    kind: ClassVar[str] = "schedule"
    hooks: ClassVar[frozenset[str]] = frozenset({"plan_region", "plan_blocks", "restrict", "forbid"})

    @abstractmethod
    def plan_region(self, state: DecodingState) -> Region:
        """Offer the positions that may be written or read now: the hook `plan_region`.

        Args:
            state: The canvases as the last step left them.

        Returns:
            The region, with one open target at least.
        """

    def plan_blocks(self, state: DecodingState) -> Tensor | None:
        """Say how many targets each block has: the hook `plan_blocks`.

        Args:
            state: The canvases, nothing committed.

        Returns:
            Int64 `[batch, blocks]`; None where the blocks cannot be known ahead.
        """
        return None


class LogitsTransform(Policy, ABC):
    """Changes the logits before anything reads them. Applied in the order of the config."""

    kind: ClassVar[str] = "transforms"
    hooks: ClassVar[frozenset[str]] = frozenset({"canvases"})

    @abstractmethod
    def transform(self, state: DecodingState, observation: Observation) -> Tensor:
        """Change the logits before anything else reads them.

        Called:
            Every step, after the forward, in the order of the config. Each transform gets the logits of the
            one before it.

        Args:
            state: The canvases, before the step is committed.
            observation: What the forward shows of the region, an entry for each of its positions.

        Returns:
            New logits `[batch, region, vocabulary]`, floating-point; minus infinity rules a token out.

        May change:
            Its own memory. The logits that it is given stay as they are.

        On a bad answer:
            PluginError at once for another type, shape or device. DecodingError when the step is read back
            for NaN, or nothing but minus infinity, at an open target.
        """


class Score(Policy, ABC):
    """Ranks positions: which ones a rule takes first. How many is the rule's own matter.

    Rules hold one in a field of type `NestedScore` and call it: `self.score(state, observation)`.
    """

    kind: ClassVar[str] = "score"
    hooks: ClassVar[frozenset[str]] = frozenset({"canvases"})

    @abstractmethod
    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        """Rank positions, whenever the rule that holds it asks.

        Scores are compared within a row, and at eligible positions alone; equal ones go to the lower
        position. Minus infinity comes last, and NaN ends the run with an error.

        Args:
            state: The canvases, before the step is committed.
            observation: What the forward shows of the region.

        Returns:
            Floats `[batch, region]`; a higher one is committed earlier.
        """

    def __call__(self, state: DecodingState, observation: Observation) -> Tensor:
        """What `score` answers; PluginError where that is not floats `[batch, region]`."""
        scores = self.score(state, observation)
        wanted, own = observation.eligible, observation.log_confidence
        who = f"{type(self).__name__}.score"
        fits = isinstance(scores, Tensor) and scores.is_floating_point() and scores.shape == wanted.shape
        if not fits or scores.device != wanted.device:
            raise PluginError(
                f"{who} answered {shown(scores)}; it must be floats {list(wanted.shape)} on {wanted.device}."
            )
        if scores is not own:  # NaN in the logits themselves is told by the engine
            broken = (scores.isnan() & wanted & ~own.isnan()).any()
            state.trouble(broken, PluginError(f"{who} answered NaN at an eligible position."))
        return scores


class Wrapper(Policy, ABC):
    """Changes what other policies do: `restrict`, or `wrap_` and the name of a hook."""

    kind: ClassVar[str] = "wrappers"
    hooks: ClassVar[frozenset[str]] = frozenset({"restrict", "forbid", "canvases"})


class Observer(Policy, ABC):
    """Watches a run through the lifecycle hooks, and answers none that decides."""

    kind: ClassVar[str] = "observers"


KINDS: tuple[type[Policy], ...] = (
    UnmaskingPolicy, Score, CachePolicy, BlockSchedule, LogitsTransform, Wrapper, Observer,
)  # fmt: skip
