"""One step of a run, as those who own the loop see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dllm_sampling.engine.answers import check_selected
from dllm_sampling.errors import PluginError, no_attribute
from dllm_sampling.state.decision import Decision

if TYPE_CHECKING:
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.observation import Observation
    from dllm_sampling.state.plan import ForwardPlan
    from dllm_sampling.state.region import Region


class Step:
    """One step as `Sampler.steps` yields it: everything is decided, nothing is committed yet.

    Args:
        state: The state of the run.
        region: The positions of the step.
        plan: What the forward computed.
        observation: What it showed.
        selected: What the policies chose.

    Attributes:
        state: The state of the run, for reading.
        region: The positions of the step, for reading.
        plan: What the forward computed, for reading.
        observation: What it showed, for reading.
        decision: What is committed, under the progress guard, when the next step is asked for. It may be
            replaced, by a Decision or by a bool mask `[batch, region]` of positions to commit.

    Raises:
        PluginError: A decision of the wrong type, dtype or shape is set, or it is set too late.
        AttributeError: Anything else is set.
    """

    state: DecodingState
    region: Region
    plan: ForwardPlan
    observation: Observation
    _decision: Decision
    _forward: int

    def __init__(
        self,
        state: DecodingState,
        region: Region,
        plan: ForwardPlan,
        observation: Observation,
        selected: Tensor | Decision,
    ) -> None:
        fields = {"state": state, "region": region, "plan": plan, "observation": observation}
        vars(self).update(fields, _decision=as_decision(selected), _forward=state.forward_index)

    @property
    def decision(self) -> Decision:
        """What is committed when the next step is asked for."""
        return self._decision

    @decision.setter
    def decision(self, value: Decision | Tensor) -> None:
        vars(self)["_decision"] = self._checked(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decision":
            super().__setattr__(name, value)
        elif name in vars(self):
            raise AttributeError(f"Step.{name} is for reading: only decision may be replaced.")
        else:
            raise no_attribute(self, name)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    def _checked(self, value: object) -> Decision:
        if self.state.forward_index != self._forward:
            raise PluginError("Step.decision: this step is committed already; set it before the next step.")
        given = {"state": self.state, "observation": self.observation}
        return as_decision(check_selected("Step.decision", value, given))


def as_decision(selected: Tensor | Decision) -> Decision:
    """What `select` answered, as a Decision: a mask says which positions to commit."""
    return Decision(selected) if isinstance(selected, Tensor) else selected
