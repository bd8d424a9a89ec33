"""The hooks of one run: bridges the methods of its policies to pluggy, by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import pluggy
from torch import Tensor

from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.engine.answers import CHECKS
from dllm_sampling.engine.own_hooks import OwnHooks, own_hooks
from dllm_sampling.errors import PluginError, shown, unknown_name
from dllm_sampling.plugins.blame import Blame
from dllm_sampling.policies.class_checks import WRAP
from dllm_sampling.policies.kinds import (
    KINDS,
    LIFECYCLE,
    BlockSchedule,
    CachePolicy,
    LogitsTransform,
    Observer,
    Policy,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.policies.run_spec import PROJECT, RunSpec, hook_names
from dllm_sampling.state.decision import Decision
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.region import Region
from dllm_sampling.state.result import GenerationResult

# Hooks of which it matters who answered.
_ASKED_ONE_BY_ONE = frozenset({"forbid", "close"})
# Hooks that a policy held by another one answers itself. The rest its holder calls, or not.
ANSWERED_WHEN_HELD = LIFECYCLE | {"canvases"}


class _Slot(SimpleNamespace):
    """What is registered for one policy: its bound hook methods, and nothing else.

    Never the policy itself: two equal frozen instances would collide, and pluggy would look at every
    attribute of a pydantic model.
    """

    def __hash__(self) -> int:  # type: ignore[override]  # pluggy keys plugins by identity
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Manager(pluggy.PluginManager):
    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        found = super().parse_hookspec_opts(module_or_class, name)
        if found is None and not name.startswith("_") and inspect.isfunction(getattr(module_or_class, name)):
            found = {"firstresult": False, "historic": False, "warn_on_impl": None, "warn_on_impl_args": None}
        return found

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if name not in vars(plugin):
            return None
        return {
            "wrapper": name.startswith(WRAP),
            "hookwrapper": False,
            "optionalhook": False,
            "tryfirst": False,
            "trylast": False,
            "specname": name.removeprefix(WRAP),
        }


class Policies(NamedTuple):
    """The policies of a run, by slot."""

    schedule: BlockSchedule
    cache: CachePolicy
    unmasking: UnmaskingPolicy
    transforms: tuple[LogitsTransform, ...]
    wrappers: tuple[Wrapper, ...]
    observers: tuple[Observer, ...]


def policies_of(settings: SamplerSettings) -> Policies:
    """The policies of a sampler's settings, by slot."""
    return Policies(*(getattr(settings, slot) for slot in Policies._fields))


def detached(policies: Policies) -> Policies:
    """Equal policies of which no object stands in two slots."""
    return Policies(
        policies.schedule.detached(),
        policies.cache.detached(),
        policies.unmasking.detached(),
        tuple(policy.detached() for policy in policies.transforms),
        tuple(policy.detached() for policy in policies.wrappers),
        tuple(policy.detached() for policy in policies.observers),
    )


def slots(policies: Policies) -> Iterator[tuple[str, Policy, bool]]:
    """Every policy of a run with its path and whether another one holds it."""
    for role, given in policies._asdict().items():
        single = isinstance(given, Policy)
        for i, policy in enumerate([given] if single else given):
            path = role if single else f"{role}[{i}]"
            yield path, policy, False
            yield from _held(path, policy)


def _held(path: str, policy: Policy) -> Iterator[tuple[str, Policy, bool]]:
    for field, child in policy.children():
        yield f"{path}.{field}", child, True
        yield from _held(f"{path}.{field}", child)


def manager(policies: Policies) -> pluggy.PluginManager:
    """A manager on which every policy's hooks are registered; later wrappers wrap earlier ones.

    Raises PluginError for a method that no hook calls as it is written, and for a hook that policies of
    another kind answer. Hooks that the policies bring themselves are among its hooks.
    """
    created = _Manager(PROJECT)
    created.add_hookspecs(RunSpec)
    own = own_hooks(policy for _, policy, _ in slots(policies))
    if own:
        created.add_hookspecs(type("OwnHooks", (), own))
    for path, policy, held in slots(policies):
        created.register(_Slot(**_hook_methods(policy, path, held, own)), name=path)
    return created


def transforms(policies: Policies) -> list[Callable[[DecodingState, Observation], Tensor]]:
    """The transforms of a run, in order; pluggy would not hand the one's answer to the next."""
    return [
        _asked(policy, f"transforms[{i}]", "transform", ("state", "observation"))
        for i, policy in enumerate(policies.transforms)
    ]


def idle_steps(policies: Policies) -> Callable[[int], int]:
    """The number of idle steps that the unmasking policy allows a row of so many targets."""
    return _asked(policies.unmasking, "unmasking", "idle_steps", ("targets",))


class RunHooks:
    """What the engine asks the policies of one run, each question by the name of its hook."""

    def __init__(self, policies: Policies) -> None:
        self._hook = manager(policies).hook
        self._transforms = transforms(policies)
        # What policies ask each other; `state.hooks`.
        self.own = OwnHooks(self._hook, vars(self._hook).keys() - hook_names(RunSpec))

    def plan_blocks(self, state: DecodingState) -> Tensor | None:
        targets: Tensor | None = self._hook.plan_blocks(state=state)
        return targets

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        self._hook.begin(state=state, facts=facts)

    def plan_region(self, state: DecodingState) -> Region:
        region: Region = _answered("plan_region", self._hook.plan_region(state=state))
        return region

    def block_started(self, state: DecodingState, region: Region) -> None:
        self._hook.block_started(state=state, region=region)

    def plan_forward(self, state: DecodingState, region: Region) -> ForwardPlan:
        plan: ForwardPlan = _answered("plan_forward", self._hook.plan_forward(state=state, region=region))
        return plan

    def canvases(self, state: DecodingState, plan: ForwardPlan) -> dict[str, Tensor]:
        """The further canvases that policies ask for."""
        found: dict[str, Tensor] = {}
        for named in self._hook.canvases(state=state, plan=plan):
            for name, tokens in named.items():
                if name in found:
                    raise PluginError(f"two policies of this run call a canvas {name!r}.")
                found[name] = tokens
        return found

    def shown(self, state: DecodingState, observation: Observation) -> Observation:
        """What policies see of a forward: after the transforms in order, restrictions and prohibitions."""
        for transform in self._transforms:
            observation = observation.with_logits(transform(state, observation))
        for allowed in self._hook.restrict(state=state, observation=observation):
            observation = observation.restricted(allowed)
        for who in self._hook.forbid.get_hookimpls():
            forbidden: Any = who.function(state, observation)
            observation = observation.without(who.plugin_name, forbidden)
        return observation

    def select(self, state: DecodingState, observation: Observation) -> Tensor | Decision:
        chosen: Tensor | Decision = _answered(
            "select", self._hook.select(state=state, observation=observation)
        )
        return chosen

    def committed(self, state: DecodingState, observation: Observation, decision: Decision) -> None:
        self._hook.committed(state=state, observation=observation, decision=decision)

    def block_finished(self, state: DecodingState, region: Region) -> None:
        self._hook.block_finished(state=state, region=region)

    def rows_selected(self, state: DecodingState, rows: Tensor) -> None:
        self._hook.rows_selected(state=state, rows=rows)

    def end(self, state: DecodingState, result: Callable[[], GenerationResult]) -> None:
        """Tell the batch's result, which is made only where a policy wants it."""
        if self._hook.end.get_hookimpls():
            self._hook.end(state=state, result=result())

    def close(self, state: DecodingState) -> None:
        """Tell every policy that the batch is over, also where one of them fails; its error comes last."""
        failed: list[PluginError] = []
        for who in self._hook.close.get_hookimpls():
            try:
                who.function(state)
            except PluginError as error:
                failed.append(error)
        if failed:
            raise failed[0]


def _answered(name: str, answer: Any) -> Any:
    if answer is None:
        raise PluginError(f"{name} returned None: every step needs an answer.")
    return answer


def _hook_methods(
    policy: Policy, path: str, held: bool, own: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    names = {*hook_names(RunSpec), *own}
    methods: dict[str, Any] = {}
    for name, function in inspect.getmembers(type(policy), inspect.isfunction):
        hook = name.removeprefix(WRAP)
        who = f"{type(policy).__name__}.{name}"
        if name.startswith(WRAP) and hook not in names:
            raise PluginError(f"{who}: " + unknown_name("hook", hook, names))
        if hook not in names or function in _BASE_METHODS:
            continue
        if name.startswith(WRAP) and hook in _ASKED_ONE_BY_ONE:
            raise PluginError(f"{who} ({path}): {hook} cannot be wrapped; each policy answers for itself.")
        if name not in own and not _may_answer(policy, name):
            answered = ", ".join(sorted(policy.hooks | LIFECYCLE))
            raise PluginError(
                f"{who} ({path}): a policy of this kind does not answer {name}; its hooks are {answered}. "
                "Methods that begin with wrap_ are a Wrapper's."
            )
        if held and hook not in ANSWERED_WHEN_HELD and hook not in own:
            continue
        methods[name] = _bridged(policy, path, name, own.get(hook) or getattr(RunSpec, hook))
    return methods


def _may_answer(policy: Policy, name: str) -> bool:
    if name.startswith(WRAP):
        return isinstance(policy, Wrapper)
    return name in policy.hooks or name in LIFECYCLE


def _bridged(policy: Policy, path: str, name: str, specified: Callable[..., Any]) -> Callable[..., Any]:
    """What pluggy calls for one method: takes all of the hook's arguments, hands on those it wants."""
    arguments = tuple(inspect.signature(specified).parameters)[1:]
    asked = _asked(policy, path, name, arguments)
    if not name.startswith(WRAP):
        return functools.wraps(specified)(asked)

    @functools.wraps(specified)
    def around(*given: Any) -> Generator[Any, Any, Any]:
        return (yield from asked(*given))

    return around


def _asked(policy: Policy, path: str, name: str, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """A method of a policy: takes all `arguments`, is blamed for its errors, has its answer checked."""
    method = getattr(policy, name)
    who = f"{type(policy).__name__}.{name} ({path})"
    taken = _taken(method, who, arguments)
    places = [arguments.index(argument) for argument in taken]
    check = CHECKS.get(name.removeprefix(WRAP))

    def checked(answer: Any, given: tuple[Any, ...]) -> Any:
        return answer if check is None else check(who, answer, dict(zip(arguments, given, strict=True)))

    def checked_each(answers: Any, given: tuple[Any, ...]) -> Any:
        if not isinstance(answers, list):
            raise PluginError(f"{who} answered {shown(answers)}; it must be a list of answers.")
        return [checked(answer, given) for answer in answers]

    if not name.startswith(WRAP):

        def ask(*given: Any) -> Any:
            with Blame(who, method):
                return checked(method(*[given[place] for place in places]), given)

        return ask

    if not inspect.isgeneratorfunction(method):  # told when the class is made, where the hook is the engine's
        raise PluginError(f"{who} must be a generator with one yield, which gives it what it wraps.")
    wrapped = getattr(RunSpec, name.removeprefix(WRAP), None)
    check_answer = checked if check is None or _is_first_result(wrapped) else checked_each

    def ask_around(*given: Any) -> Generator[Any, Any, Any]:
        with Blame(who, method):
            return check_answer((yield from method(*[given[place] for place in places])), given)

    return ask_around


def _is_first_result(hook: Any) -> bool:
    return bool(getattr(hook, f"{PROJECT}_spec")["firstresult"])


def _taken(method: Any, who: str, arguments: tuple[str, ...]) -> list[str]:
    """The arguments that a method takes by name; PluginError for one that its hook does not give."""
    taken = []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in arguments and parameter.kind != parameter.KEYWORD_ONLY:
            taken.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise PluginError(f"{who}: " + unknown_name("argument", parameter.name, arguments))
    return taken


_BASE_METHODS = {
    function for kind in (Policy, *KINDS) for _, function in inspect.getmembers(kind, inspect.isfunction)
}
