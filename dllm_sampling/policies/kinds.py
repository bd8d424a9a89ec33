"""Base classes for everything a researcher can swap.

A policy is a frozen pydantic model: its fields are its parameters, unknown keys are errors. It keeps
no run state; what it must remember lives in `state.memory(self)`. Every kind has one abstract method;
the hooks of `hookspecs.RunSpec` may be defined besides, each a no-op where it is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dllm_sampling.errors import ConfigurationError, PluginError, shown
from dllm_sampling.policies.named import Named

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

    hooks: those of `hookspecs.RunSpec` that a policy of this kind answers; any may watch the lifecycle.
    """

    hooks: ClassVar[frozenset[str]] = frozenset()

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


class UnmaskingPolicy(Policy, ABC):
    """Decides which of the freshly predicted positions are committed."""

    kind: ClassVar[str] = "unmasking"
    hooks: ClassVar[frozenset[str]] = frozenset({"select", "canvases"})

    @abstractmethod
    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision:
        """Every step: bool `[batch, region]` of positions to commit, or a full Decision.

        The engine commits what is eligible of it. Where that is nothing, and the row has no idle
        steps left, it commits the row's most confident eligible position.
        """

    def idle_steps(self, targets: int) -> int:
        """How many steps a row of `targets` may pass without net progress, an integer. 0 unless overridden.

        A step that commits fewer than it remasks, or as many, costs 1 plus the shortfall.
        """
        return 0


class CachePolicy(Policy, ABC):
    """Decides which positions each forward recomputes."""

    kind: ClassVar[str] = "cache"
    hooks: ClassVar[frozenset[str]] = frozenset({"plan_forward"})

    @abstractmethod
    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        """Every step: the positions to compute. The first plan of a run must be a refresh."""


class BlockSchedule(Policy, ABC):
    """Decides which span is being worked on."""

    kind: ClassVar[str] = "schedule"
    hooks: ClassVar[frozenset[str]] = frozenset({"plan_region", "plan_blocks", "restrict", "forbid"})

    @abstractmethod
    def plan_region(self, state: DecodingState) -> Region:
        """Every step: the positions that may be written or read now, one open target at least."""

    def plan_blocks(self, state: DecodingState) -> Tensor | None:
        """Targets in each block, `[batch, blocks]`; None where the blocks cannot be known ahead."""
        return None


class LogitsTransform(Policy, ABC):
    """Changes the logits before anything reads them. Applied in the order of the config."""

    kind: ClassVar[str] = "transforms"
    hooks: ClassVar[frozenset[str]] = frozenset({"canvases"})

    @abstractmethod
    def transform(self, state: DecodingState, observation: Observation) -> Tensor:
        """Every step: new logits `[batch, region, vocabulary]`; the old ones must not be changed."""


class Score(Policy, ABC):
    """Ranks positions: which ones a rule takes first. How many is the rule's own matter.

    Rules hold one in a field of type `NestedScore` and call it: `self.score(state, observation)`.
    """

    kind: ClassVar[str] = "score"
    hooks: ClassVar[frozenset[str]] = frozenset({"canvases"})

    @abstractmethod
    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        """Every step: floats `[batch, region]`; a higher one is committed earlier.

        They are compared within a row, and at eligible positions alone; equal ones go to the lower
        position. Minus infinity comes last, and NaN ends the run with an error.
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
