"""The hooks of one run: bridges the methods of its policies to pluggy, by name."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple

import pluggy
import torch
from torch import Tensor

from dllm_sampling.config.sampler_settings import SamplerSettings
from dllm_sampling.engine.answers import CHECKS
from dllm_sampling.errors import DllmSamplingError, PluginError, shown, told, unknown_name
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

_WRAP = "wrap_"
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
    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if name not in vars(plugin):
            return None
        return {
            "wrapper": name.startswith(_WRAP),
            "hookwrapper": False,
            "optionalhook": False,
            "tryfirst": False,
            "trylast": False,
            "specname": name.removeprefix(_WRAP),
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
    another kind answer.
    """
    created = _Manager(PROJECT)
    created.add_hookspecs(RunSpec)
    for path, policy, held in slots(policies):
        created.register(_Slot(**_hook_methods(policy, path, held)), name=path)
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


def _hook_methods(policy: Policy, path: str, held: bool) -> dict[str, Any]:
    names = hook_names(RunSpec)
    methods: dict[str, Any] = {}
    for name, function in inspect.getmembers(type(policy), inspect.isfunction):
        hook = name.removeprefix(_WRAP)
        who = f"{type(policy).__name__}.{name}"
        if name.startswith(_WRAP) and hook not in names:
            raise PluginError(f"{who}: " + unknown_name("hook", hook, names))
        if hook not in names or function in _BASE_METHODS:
            continue
        if name.startswith(_WRAP) and hook in _ASKED_ONE_BY_ONE:
            raise PluginError(f"{who} ({path}): {hook} cannot be wrapped; each policy answers for itself.")
        if not _may_answer(policy, name):
            own = ", ".join(sorted(policy.hooks | LIFECYCLE))
            raise PluginError(
                f"{who} ({path}): a policy of this kind does not answer {name}; its hooks are {own}. "
                "Methods that begin with wrap_ are a Wrapper's."
            )
        if held and hook not in ANSWERED_WHEN_HELD:
            continue
        methods[name] = _bridged(policy, path, name, hook)
    return methods


def _may_answer(policy: Policy, name: str) -> bool:
    if name.startswith(_WRAP):
        return isinstance(policy, Wrapper)
    return name in policy.hooks or name in LIFECYCLE


def _bridged(policy: Policy, path: str, name: str, hook: str) -> Callable[..., Any]:
    """What pluggy calls for one method: takes all of the hook's arguments, hands on those it wants."""
    specified = getattr(RunSpec, hook)
    arguments = tuple(inspect.signature(specified).parameters)[1:]
    asked = _asked(policy, path, name, arguments)
    if not name.startswith(_WRAP):
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
    check = CHECKS.get(name.removeprefix(_WRAP))

    def checked(answer: Any, given: tuple[Any, ...]) -> Any:
        return answer if check is None else check(who, answer, dict(zip(arguments, given, strict=True)))

    def checked_each(answers: Any, given: tuple[Any, ...]) -> Any:
        if not isinstance(answers, list):
            raise PluginError(f"{who} answered {shown(answers)}; it must be a list of answers.")
        return [checked(answer, given) for answer in answers]

    if not name.startswith(_WRAP):

        def ask(*given: Any) -> Any:
            with _Blamed(who, method):
                return checked(method(*[given[place] for place in places]), given)

        return ask

    if not inspect.isgeneratorfunction(method):
        raise PluginError(f"{who} must be a generator with one yield, which gives it what it wraps.")

    wrapped = getattr(RunSpec, name.removeprefix(_WRAP))
    check_answer = checked if _is_first_result(wrapped) or check is None else checked_each

    def ask_around(*given: Any) -> Generator[Any, Any, Any]:
        with _Blamed(who, method):
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


class _Blamed:
    """Turns what a plugin raises, `sys.exit` included, into an error with its name and place."""

    def __init__(self, who: str, method: Any) -> None:
        self._who = who
        self._file = method.__func__.__code__.co_filename

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, _PASSED_ON):
            return
        frames = [f for f in traceback.extract_tb(trace) if f.filename == self._file]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise PluginError(f"{self._who} failed: {told(error)}{where}") from error


# What says what to change by itself, or is not the plugin's doing.
_PASSED_ON = (DllmSamplingError, torch.OutOfMemoryError, KeyboardInterrupt, GeneratorExit)


_BASE_METHODS = {
    function for kind in (Policy, *KINDS) for _, function in inspect.getmembers(kind, inspect.isfunction)
}
