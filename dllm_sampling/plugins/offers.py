"""What one plugin module offers: its function `register`, called through pluggy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FunctionType, MethodType
from typing import Any

import pluggy

from dllm_sampling.errors import PluginError, nearest, shown
from dllm_sampling.policies.run_spec import HOOK_VERSION, PROJECT, hookspec

REGISTER = "register"


# What versions before the first release called instead; a module that still waits for one is told.
_GONE = {
    f"register_{kinds}"
    for kinds in (
        "unmasking_policies", "cache_policies", "block_schedules", "logits_transforms", "wrappers",
        "observers", "backbones", "tasks",
    )
}  # fmt: skip


class DiscoverySpec:
    """The function that a plugin module defines.

    A plugin may state the hook version it was written for as a module variable, `HOOK_VERSION = 1`.
    """

    @hookspec
    def register(self) -> Iterable[type[Any]]:
        """The classes that the plugin offers, of any kind, as a list.

        Policies of every kind, model families and tasks may stand in one list: each class knows its kind
        by the base that it subclasses. Every class has a name, defines what its base leaves abstract, and
        shares its name with no other class of its kind. The module is loaded whole or, if anything is
        wrong, not at all.
        """
        raise NotImplementedError


class _Asked(pluggy.PluginManager):
    """Takes the plain function of that name; nobody decorates anything."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if name != REGISTER:
            return None
        return {
            "wrapper": False,
            "hookwrapper": False,
            "optionalhook": False,
            "tryfirst": False,
            "trylast": False,
            "specname": None,
        }


def offers_of(module: object) -> Iterable[object]:
    """What the module's `register()` returns, not yet looked at.

    Each module is asked by a manager of its own, so that what goes wrong is one plugin's doing and leaves
    the others as they are. Raises PluginError for a module that offers nothing, and for one that was
    written for other hooks; what `register` itself raises is passed on.
    """
    version = getattr(module, "HOOK_VERSION", HOOK_VERSION)
    if version != HOOK_VERSION:
        raise PluginError(
            f"written for version {shown(version)} of the hooks; this is version {HOOK_VERSION}."
        )
    _refuse_without_offer(module)
    manager = _Asked(PROJECT)
    manager.add_hookspecs(DiscoverySpec)
    manager.register(module, name=str(getattr(module, "__name__", None)))
    answers = manager.hook.register()
    classes = answers[0] if answers else None  # pluggy leaves None out
    if not isinstance(classes, Iterable):
        raise PluginError(f"register() returned {shown(classes)}, not a list of classes.")
    return classes


def _refuse_without_offer(module: object) -> None:
    own = [name for name in dir(module) if _is_defined_in(module, getattr(module, name, None))]
    gone = sorted(_GONE.intersection(own))
    if gone:
        raise PluginError(
            f"defines {gone[0]}, which is not called any more: one function, `register()`, returns the "
            "classes of every kind in one list. Rename it, and put the lists of several into one."
        )
    found = getattr(module, REGISTER, None)
    if found is None:
        close = nearest(REGISTER, own)
        hint = f" Is {close!r} meant to be it?" if close else ""
        raise PluginError(f"offers nothing: define `register()`, which returns a list of classes.{hint}")
    is_imported = inspect.isroutine(found) and REGISTER not in own and not _passes_on(module, found)
    if is_imported:
        raise PluginError(
            "offers nothing: define `register()`, which returns a list of classes. (Its `register` is "
            f"imported from {found.__module__}; to offer what that one returns, say "
            f"`__all__ = ['{REGISTER}']`.)"
        )
    if not isinstance(found, (FunctionType, MethodType)):  # pluggy takes no others
        raise PluginError(f"`register` is {shown(found)}, which is no plain function.")


def _is_defined_in(module: object, value: object) -> bool:
    """Whether a value is a function of the module's own and not imported by it."""
    name = getattr(module, "__name__", None)
    return inspect.isroutine(value) and getattr(value, "__module__", name) == name


def _passes_on(module: object, function: Any) -> bool:
    """Whether a module offers what a `register` does that it has from elsewhere.

    It does where that is a part of the same package, where `__all__` names it, and where the plugin is no
    module but an object with such a method. Any other import is for the module's own use, and not called.
    """
    if not inspect.ismodule(module) or REGISTER in (getattr(module, "__all__", None) or ()):
        return True
    homes = {str(name).partition(".")[0] for name in (module.__name__, module.__package__)}
    return str(function.__module__).partition(".")[0] in homes
