"""Hooks that a plugin brings for others: one asks, another answers, and neither knows the other's class."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from dllm_sampling import Observer, PluginError, Sampler, UnmaskingPolicy, Wrapper, registry
from dllm_sampling.plugins import discovery
from dllm_sampling.testing import tiny_model

ASKS = '''
import torch
from typing import ClassVar
from dllm_sampling import UnmaskingPolicy

class Votes:
    def weight(self, state, observation):
        """Weights `[batch, region]` of the positions, any float."""

class Voting(UnmaskingPolicy):
    """Commit the position that the other policies of the run like best. Source: ours."""

    name: ClassVar[str] = "voting"
    own_hooks: ClassVar[type] = Votes

    def select(self, state, observation):
        votes = sum(state.hooks.weight(state=state, observation=observation), torch.zeros(observation.masked.shape))
        best = votes.masked_fill(~observation.eligible, -torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(observation.masked).scatter(1, best, True)

def register():
    return [Voting]
'''
ANSWERS = '''
from typing import ClassVar
from dllm_sampling import Observer, Wrapper

class FromTheEnd(Observer):
    """Prefers later positions. Source: ours."""

    name: ClassVar[str] = "from_the_end"

    def weight(self, observation):
        return observation.positions.columns.float()

class Inverted(Wrapper):
    """Turns all weights round. Source: ours."""

    name: ClassVar[str] = "inverted"

    def wrap_weight(self, state):
        return [-weight for weight in (yield)]

def register():
    return [FromTheEnd, Inverted]
'''


def order(**settings):
    """In which forward each of six targets was committed."""
    result = Sampler(tiny_model(), stop_at_eos=False, **settings).generate([[1, 2]], gen_length=6)
    return result.forward_of_position[0].tolist()


def test_one_plugin_brings_a_hook_and_another_answers_it(tmp_path, monkeypatch):
    (tmp_path / "asks.py").write_text(ASKS)
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.setenv(discovery.FOLDER, str(tmp_path))
    assert {"voting"} <= set(registry().names("unmasking"))
    forwards = [0, 1, 2, 3, 4, 5]
    assert order(unmasking="voting") == forwards  # nobody answers: ties go to the left
    assert order(unmasking="voting", observers=["from_the_end"]) == forwards[::-1]
    assert order(unmasking="voting", observers=["from_the_end"], wrappers=["inverted"]) == forwards
    # A policy that another one holds is asked too, and asks itself.
    held = {"name": "with_budget", "policy": "voting", "k": 6}
    assert order(unmasking=held, observers=["from_the_end"]) == forwards[::-1]
    # Where nobody asks, the method is the policy's own affair; a wrapper of nothing is a mistake.
    assert order(unmasking={"name": "fixed_k", "k": 6}, observers=["from_the_end"]) == [0] * 6
    with pytest.raises(PluginError, match=r"Inverted\.wrap_weight: unknown hook 'weight'"):
        order(wrappers=["inverted"])


# Policies made here ----------------------------------------------------------------------------------


class Hooks:
    def weight(self, state, observation):
        """Weights."""


class Asks(UnmaskingPolicy):
    name: ClassVar[str] = "asks"
    own_hooks: ClassVar[type | None] = Hooks

    def select(self, state, observation):
        state.hooks.weight(state=state, observation=observation)
        return observation.eligible


def asking(specification):
    return type("Asks", (Asks,), {"name": "asks", "own_hooks": specification, "__module__": __name__})()


def test_every_run_and_every_batch_has_its_own():
    seen = []

    class Sees(Observer):
        name: ClassVar[str] = "sees"

        def weight(self, state):
            seen.append(state)

    sampler = Sampler(tiny_model(), unmasking=Asks(), observers=[Sees()], batch_size=1)
    for _ in range(2):
        sampler.generate([[1, 2], [3]], gen_length=2)
    assert len({id(state) for state in seen}) == 4
    # Another run knows nothing of it.
    steps = Sampler(tiny_model(), observers=[Sees()]).steps([[1, 2]], gen_length=2)
    with pytest.raises(AttributeError, match="no policy of this run brings a hook called 'weight'"):
        next(steps).state.hooks.weight  # noqa: B018


def test_a_policy_that_another_one_holds_answers_by_itself():
    got = []

    class Both(Asks):
        name: ClassVar[str] = "both"

        def weight(self):
            return "held"

        def select(self, state, observation):
            got.append(state.hooks.weight(state=state, observation=observation))
            return observation.eligible

    held = registry().get("unmasking", "with_budget")(policy=Both(), k=6)
    order(unmasking=held)
    assert got == [["held"]]


def test_only_brought_hooks_can_be_asked_and_a_misspelt_one_is_told():
    for name, message in (("select", "'select'"), ("wieght", "'wieght'. Did you mean 'weight'")):

        class Wrong(Asks):
            name: ClassVar[str] = "wrong"

            def select(self, state, observation):
                return getattr(state.hooks, name)(state=state, observation=observation)  # noqa: B023

        with pytest.raises(PluginError, match=f"Wrong.select .*brings a hook called {message}"):
            order(unmasking=Wrong())


def test_an_answer_that_cannot_be_called_or_fails_is_told():
    class Takes(Observer):
        name: ClassVar[str] = "takes"

        def weight(self, observatoin):
            return None

    class Fails(Observer):
        name: ClassVar[str] = "fails"

        def weight(self):
            raise ValueError("too heavy")

    class Generates(Wrapper):
        name: ClassVar[str] = "generates"

        def wrap_weight(self, state):
            return []

    for settings, message in (
        ({"observers": [Takes()]}, "Takes.weight .*'observatoin'. Did you mean 'observation'"),
        ({"observers": [Fails()]}, r"Fails.weight \(observers\[0\]\) failed: ValueError: too heavy"),
        ({"wrappers": [Generates()]}, "wrap_weight .*must be a generator with one yield"),
    ):
        with pytest.raises(PluginError, match=message):
            order(unmasking=Asks(), **settings)


class Select:
    def select(self, state): ...


class Transform:
    def transform(self, state): ...


class Wrap:
    def wrap_weight(self, state): ...


class Copy:
    def model_dump(self): ...


class Empty:
    _weight = None


class Defaults:
    def weight(self, state, strength=1): ...


class Stars:
    def weight(self, *states): ...


class Static:
    def weight(state): ...


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        (Select, "Select.select: policies have something of that name already"),
        (Transform, "policies have something of that name already"),
        (Copy, "policies have something of that name already"),
        (Wrap, "policies have something of that name already"),
        (Empty, "Empty defines no hook"),
        (Defaults, "argument strength=1 must be a plain name without a default"),
        (Stars, r"argument \*states must be a plain name"),
        (Static, "the first argument of a hook is self"),
        (Hooks(), "must be a class whose methods are hooks"),
    ],
)
def test_hooks_that_cannot_work_are_refused(specification, message):
    with pytest.raises(PluginError, match=message):
        order(unmasking=asking(specification))


def test_two_that_mean_something_by_one_name_are_refused():
    class Other:
        def weight(self, state): ...

    class AlsoAsks(Observer):
        name: ClassVar[str] = "also_asks"
        own_hooks: ClassVar[type] = Other

    with pytest.raises(PluginError, match=r"Hooks and .*Other both bring a hook called 'weight'"):
        order(unmasking=Asks(), observers=[AlsoAsks()])
    # The same specification twice is one.
    assert order(
        unmasking=Asks(),
        observers=[type("B", (AlsoAsks,), {"name": "b", "own_hooks": Hooks, "__module__": __name__})()],
    )


def test_answers_are_of_the_run_not_of_a_tensor_kind():
    """What the answers are is between the two: the engine looks at none of them."""

    class Answers(Observer):
        name: ClassVar[str] = "answers"

        def weight(self, state):
            return "heavy"

    got = []

    class Listens(Asks):
        name: ClassVar[str] = "listens"

        def select(self, state, observation):
            got.extend(state.hooks.weight(state=state, observation=observation))
            return torch.ones_like(observation.masked)

    order(unmasking=Listens(), observers=[Answers(), Answers()])
    assert got == ["heavy"] * 2
