"""What a cache policy says of its exactness is held against no cache at all."""

from __future__ import annotations

from typing import ClassVar

import pytest
from dllm_sampling.caches import (
    CommitRefresh,
    Delayed,
    DualCache,
    EntropyRefresh,
    IntervalRefresh,
    PrefixCache,
    WarmUp,
    Windowed,
)

from dllm_sampling import registry
from dllm_sampling.testing import CachePolicyConformance, tiny_model


def check(policy):
    """The check of the suite, on the model that the suite gives."""
    CachePolicyConformance().test_what_it_calls_exact_is_exact(policy, tiny_model())


LIARS = [
    (DualCache, {}),
    (PrefixCache, {}),
    (EntropyRefresh, {"threshold": 1000.0}),
    (Delayed, {"interval": 2}),
    (Windowed, {"left": 2, "right": 2}),
    (IntervalRefresh, {"interval": 2}),
]


@pytest.mark.parametrize(("cls", "settings"), LIARS, ids=lambda value: getattr(value, "name", None))
def test_a_false_claim_fails(cls, settings):
    class Liar(cls):
        name: ClassVar[str] = "liar"
        exact_with: ClassVar = settings

    given = {"policy": "dual"} if cls is IntervalRefresh else {}
    with pytest.raises(AssertionError, match="says that it is exact, and decodes to other tokens"):
        check(Liar(**given))


def test_a_claim_of_one_instance_is_held_to_as_well():
    class Liar(DualCache):
        name: ClassVar[str] = "liar"

        @property
        def exact(self):
            return True

    with pytest.raises(AssertionError, match="says that it is exact"):
        check(Liar())


@pytest.mark.parametrize("name", registry().classes("cache"))
def test_what_ships_says_the_truth(name):
    held = "policy" in registry().get("cache", name).model_fields
    given = {"policy": "dual"} if held else {}
    check(registry().get("cache", name)(**given))


def test_exactness_follows_the_settings():
    said = {
        policy.model_dump_json(): policy.exact
        for policy in (
            registry().get("cache", "none")(),
            Delayed(interval=1),
            Delayed(interval=2),
            Windowed(),
            WarmUp(policy="none"),
            WarmUp(policy="dual"),
            CommitRefresh(policy={"name": "delayed", "interval": 1}),
            CommitRefresh(policy="dual"),
            DualCache(),
            IntervalRefresh(policy="dual", interval=1),
            IntervalRefresh(policy="dual", interval=2),
            IntervalRefresh(policy="none", interval=2),
            IntervalRefresh(policy=IntervalRefresh(policy="none", interval=2), interval=3),
        )
    }
    assert list(said.values()) == [
        True, True, False, False, True, False, True, False, False, True, False, True, True,
    ]  # fmt: skip
