"""Hooks that policies of a run bring for the others: `own_hooks` of a policy, asked through `state.hooks`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pluggy

from dllm_sampling.errors import PluginError, nearest, shown
from dllm_sampling.policies.kinds import KINDS, Policy
from dllm_sampling.policies.run_spec import RunSpec, hook_names


class OwnHooks:
    """The callers of these hooks, by name; each takes the hook's arguments by keyword."""

    def __init__(self, hooks: pluggy.HookRelay, names: Iterable[str]) -> None:
        for name in names:
            setattr(self, name, getattr(hooks, name))

    def __getattr__(self, name: str) -> Any:
        close = nearest(name, vars(self))
        hint = f" Did you mean {close!r}?" if close else ""
        raise AttributeError(f"no policy of this run brings a hook called {name!r}.{hint}")


def own_hooks(policies: Iterable[Policy]) -> dict[str, Callable[..., Any]]:
    """The hooks that these policies bring, by name.

    Raises PluginError where two of them, or one of them and the engine, mean something by the same name, and
    for a hook that could not be called with its arguments by keyword.
    """
    found: dict[str, tuple[type, Callable[..., Any]]] = {}
    for policy in policies:
        specification = type(policy).own_hooks
        if specification is None:
            continue
        who = f"{type(policy).__name__}.own_hooks"
        if not inspect.isclass(specification):
            raise PluginError(f"{who} must be a class whose methods are hooks, not {shown(specification)}.")
        hooks = _methods(specification)
        if not hooks:
            raise PluginError(f"{who}: {specification.__name__} defines no hook, that is, no public method.")
        for name, function in hooks.items():
            _check(f"{who}: {specification.__name__}.{name}", name, function)
            first, _ = found.setdefault(name, (specification, function))
            if first is not specification:
                raise PluginError(
                    f"{who}: {first.__module__}.{first.__name__} and {specification.__module__}."
                    f"{specification.__name__} both bring a hook called {name!r}: rename one."
                )
    return {name: function for name, (_, function) in found.items()}


def _methods(specification: type) -> Mapping[str, Callable[..., Any]]:
    members = inspect.getmembers(specification, inspect.isfunction)
    return {name: function for name, function in members if not name.startswith("_")}


def _check(who: str, name: str, function: Callable[..., Any]) -> None:
    if name in hook_names(RunSpec) or any(hasattr(kind, name) for kind in KINDS) or name.startswith("wrap_"):
        raise PluginError(f"{who}: policies have something of that name already; rename the hook.")
    arguments = list(inspect.signature(function).parameters.values())
    if not arguments or arguments[0].name != "self":
        raise PluginError(f"{who}: the first argument of a hook is self.")
    for argument in arguments[1:]:
        if argument.kind != argument.POSITIONAL_OR_KEYWORD or argument.default is not argument.empty:
            raise PluginError(f"{who}: the argument {argument} must be a plain name without a default.")
