"""Mistakes that are told where a policy's class is made: names that are nearly a hook's, and what keeps state."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr, computed_field, field_validator, model_validator

from dllm_sampling import (
    BlockSchedule,
    CachePolicy,
    LogitsTransform,
    Observer,
    PluginError,
    UnmaskingPolicy,
    Wrapper,
    registry,
)
from dllm_sampling.policies.class_checks import meant
from dllm_sampling.policies.kinds import KINDS, LIFECYCLE
from dllm_sampling.policies.run_spec import RunSpec, hook_names

HOOKS = sorted(hook_names(RunSpec) | {"transform", "idle_steps"})
OWN = {
    UnmaskingPolicy: "select",
    CachePolicy: "plan_forward",
    BlockSchedule: "plan_region",
    LogitsTransform: "transform",
}


def made(base, **space):
    """A class of a kind with these attributes and its own method."""
    own = {OWN[base]: lambda self, state: None} if base in OWN else {}
    annotations = {"name": ClassVar[str], **space.pop("__annotations__", {})}
    return type(
        "Mine",
        (base,),
        {"name": "mine", "__annotations__": annotations, "__module__": __name__, **own, **space},
    )


def method(self, state):
    return None


def wrap(self, state):
    yield


MISSPELT = {
    "comitted": (Observer, "committed"),
    "commited": (UnmaskingPolicy, "committed"),
    "comited": (CachePolicy, "committed"),
    "idle_step": (UnmaskingPolicy, "idle_steps"),
    "block_start": (CachePolicy, "block_started"),
    "block_finish": (Observer, "block_finished"),
    "row_selected": (CachePolicy, "rows_selected"),
    "plan_foward": (CachePolicy, "plan_forward"),
    "planForward": (CachePolicy, "plan_forward"),
    "plan_block": (BlockSchedule, "plan_blocks"),
    "wrap_selct": (Wrapper, "wrap_select"),
    "warp_select": (Wrapper, "wrap_select"),
    "wrap_plan_foward": (Wrapper, "wrap_plan_forward"),
    "restric": (Wrapper, "restrict"),
    "on_begin": (Observer, "begin"),
    "beign": (Observer, "begin"),
    "on_end": (Observer, "end"),
    "canvasses": (LogitsTransform, "canvases"),
    "selcet": (UnmaskingPolicy, "select"),
}
# Names of a policy's own, some of them beside a hook's.
HELPERS = [
    "score",
    "scores",
    "commit",
    "commits",
    "commit_all",
    "committed_mask",
    "omitted",
    "begin_at",
    "begins",
    "begun",
    "ends",
    "ended",
    "endings",
    "region_of",
    "planned",
    "planned_region",
    "planned_blocks",
    "plan",
    "selected",
    "selects",
    "reselect",
    "elect",
    "restricted",
    "restricts",
    "transformed",
    "transfer",
    "canvas",
    "idle",
    "idle_count",
    "steps",
    "block",
    "blocks",
    "block_length",
    "block_of",
    "starts",
    "finished",
    "rows",
    "row",
    "forward",
    "refresh",
    "refreshes",
    "mask",
    "masked",
    "tokens",
    "threshold",
    "best",
    "choose",
    "decide",
    "allowed",
    "window",
    "left_of",
    "width",
    "limit",
    "budget",
    "on_device",
    "positions",
    "memory_of",
    "uniform",
    "noise",
    "state_of",
    "is_committed",
    "most_confident",
    "reject",
    "detect",
    "reset",
    "close",
    "confidence",
    "margin",
    "entropy",
    "order",
    "rank",
    "weights",
    "schedule",
    "cache",
    "bonus",
    "factor",
    "share",
    "progress",
    "wrap",
    "wrapped",
    "warp",
]


@pytest.mark.parametrize("name", MISSPELT)
def test_a_name_that_is_nearly_a_hooks_is_refused_with_the_hook(name):
    base, hook = MISSPELT[name]
    with pytest.raises(
        PluginError, match=rf"Mine\.{name}: there is no hook.*Did you mean '{hook}'\?.*underscore"
    ):
        made(base, **{name: method})


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_it_is_refused_however_it_is_defined(kind):
    with pytest.raises(PluginError, match="Did you mean 'committed'"):
        made(Observer, comitted=kind(method))


def test_a_mixins_misspelt_hook_is_refused_too():
    class Mixin:
        def comitted(self, state):
            return None

    with pytest.raises(PluginError, match=r"Both\.comitted.*Did you mean 'committed'"):

        class Both(Mixin, Observer):
            name: ClassVar[str] = "both"


def test_another_kinds_misspelt_hook_is_a_helper():
    made(Observer, plan_blok=method, idle_step=method)


@pytest.mark.parametrize("base", KINDS)
def test_helpers_keep_their_names(base):
    made(base, **{name: method for name in HELPERS}, _comitted=method, _idle_step=staticmethod(method))


@given(st.sampled_from(HOOKS), st.data())
def test_one_letter_less_is_a_slip_in_any_longer_name(hook, data):
    if len(hook) < 6:
        return
    at = data.draw(st.integers(1, len(hook) - 1))
    slip = hook[:at] + hook[at + 1 :]
    assert meant(slip, [hook]) == hook


@given(st.sampled_from(HOOKS), st.data())
def test_two_letters_swapped_are_a_slip(hook, data):
    at = data.draw(st.integers(1, len(hook) - 2)) if len(hook) > 3 else 1
    slip = hook[:at] + hook[at + 1] + hook[at] + hook[at + 2 :]
    assert meant(slip, [hook]) == hook


@given(
    st.sampled_from(HOOKS),
    st.text("abcdefghijklmnopqrstuvwxyz_", min_size=2, max_size=9).filter(lambda t: len(set(t)) > 1),
)
def test_what_goes_on_behind_a_hooks_name_is_another_word(hook, more):
    if meant(hook + more, [hook]) is not None:  # only underscores, or the hook's last letter again
        assert more.strip("_") in ("", hook[-1] * len(more.strip("_")))


def test_no_hook_is_nearly_another():
    for hook in HOOKS:
        assert meant(hook, [other for other in HOOKS if other != hook]) is None


def test_properties_validators_and_class_variables_keep_their_names():
    class Mine(UnmaskingPolicy):
        name: ClassVar[str] = "mine"
        comitted: int = 3
        commited: ClassVar[int] = 3

        def select(self, state, observation):
            return observation.eligible

        @property
        def idle_step(self):
            return 1

        @computed_field
        def selct(self) -> int:
            return 1

        @model_validator(mode="after")
        def block_start(self):
            return self

        @field_validator("comitted")
        @classmethod
        def canvase(cls, value):
            return value

    assert Mine().comitted == 3


def test_what_ships_is_what_it_was():
    for kind in KINDS:
        for name in registry().classes(kind.kind):
            assert registry().get(kind.kind, name)


# Under a hook's name ------------------------------------------------------------------------------


async def later(self, state):
    return None


async def later_and_later(self, state):
    yield


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (staticmethod(method), "is a staticmethod; a hook is a plain method"),
        (classmethod(method), "is a classmethod; a hook is a plain method"),
        (property(method), "is a property, which no hook calls"),
        (functools.partial(method, None), "is a partial, which no hook calls"),
        (functools.cache(method), "is a _lru_cache_wrapper, which no hook calls"),
        (later, "is async, and nothing would await it"),
        (later_and_later, "is async"),
        (wrap, "has a yield"),
    ],
)
@pytest.mark.parametrize(
    ("base", "hook"),
    [
        (UnmaskingPolicy, "select"),
        (UnmaskingPolicy, "idle_steps"),
        (Observer, "committed"),
        (LogitsTransform, "transform"),
    ],
)
def test_a_hook_is_a_plain_method(base, hook, value, message):
    with pytest.raises(PluginError, match=rf"Mine\.{hook} {message}"):
        made(
            base,
            **{hook: value},
            model_config={"ignored_types": (functools.partial, type(functools.cache(len)))},
        )


def test_a_wrap_is_a_generator():
    made(Wrapper, wrap_select=wrap)
    with pytest.raises(PluginError, match=r"Mine\.wrap_select must be a generator with one yield"):
        made(Wrapper, wrap_select=method)


def test_a_field_has_no_hooks_name():
    for hook in LIFECYCLE:
        with pytest.raises(PluginError, match=rf"Mine\.{hook}: {hook} is a hook, so no field"):
            made(Wrapper, **{"__annotations__": {hook: int}, hook: 3})
    made(Wrapper, __annotations__={"select": int}, select=3)  # not one of its own


# What keeps state ---------------------------------------------------------------------------------


def test_private_attributes_are_refused_with_where_to_remember():
    for space in (
        {"_seen": PrivateAttr(default_factory=list)},
        {"_seen": []},
        {"__annotations__": {"_seen": list}, "_seen": []},
        {"__annotations__": {"_seen": int}},
    ):
        with pytest.raises(
            PluginError, match=r"Mine\._seen: a policy keeps nothing.*state\.memory\(self\).*ClassVar"
        ):
            made(Observer, **space)


class Inner(BaseModel):
    x: int = 0


@pytest.mark.parametrize(
    "annotation",
    [
        list, list[int], dict, dict[str, int], set[int], list[int] | None, tuple[list[int], ...], bytearray,
        collections.deque[int], collections.Counter[str], Mapping[str, list[int]],
    ],
)  # fmt: skip
def test_fields_that_can_be_changed_in_place_are_refused(annotation):
    with pytest.raises(
        PluginError, match=r"Mine\.values: a \w+ could be changed.*Use tuple\[\.\.\.\].*state\.memory"
    ):
        made(UnmaskingPolicy, __annotations__={"values": annotation})


def test_fields_that_cannot_are_fine():
    cls = made(
        UnmaskingPolicy,
        __annotations__={
            "values": tuple[int, ...],
            "choice": Literal["list", "dict"],
            "named": Mapping[str, float],
            "some": Sequence[int],
            "ids": frozenset[int],
            "table": ClassVar[dict[str, int]],
            "maybe": float | None,
        },
        values=Field((1, 2), description="Given as a list in a file."),
        choice="list",
        named={},
        some=(),
        ids=frozenset(),
        table={"a": 1},
        maybe=None,
    )
    assert cls.model_validate({"values": [3, 4]}).values == (3, 4)
