"""Strategies compose by wrapping and restricting; the example is a guard on the end of sequence."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from dllm_sampling import LogitsTransform, PluginError, Sampler, UnmaskingPolicy, Wrapper
from tests.models import prompts_of, tiny
from tests.test_engine import BLOCKS, CACHES, UNMASKING, name_of


def end_behind_masks(state, observation):
    """Where an end of sequence is the candidate and a mask stands to its left."""
    ends = torch.zeros_like(observation.masked)
    for token in state.facts.eos_token_ids:
        ends |= observation.tokens == token
    before = observation.masked.long().cumsum(1) - observation.masked.long() > 0
    return ends & before


class EosGuard(Wrapper):
    """No end of sequence while masks stand to its left: as a restriction."""

    name: ClassVar[str] = "eos_guard_restriction"

    def restrict(self, state, observation):
        return ~end_behind_masks(state, observation)


class EosGuardAround(Wrapper):
    """The same, around the unmasking policy."""

    name: ClassVar[str] = "eos_guard_wrapper"

    def wrap_select(self, state, observation):
        chosen = yield
        return chosen & ~end_behind_masks(state, observation)


class LikesTheEnd(LogitsTransform):
    """Makes an end of sequence likely, so that the guard has work."""

    name: ClassVar[str] = "likes_the_end"

    def transform(self, state, observation):
        logits = observation.logits.clone()
        logits[..., list(state.facts.eos_token_ids)] += 14.0
        return logits


@pytest.mark.parametrize("cache", CACHES, ids=name_of)
@pytest.mark.parametrize("guard", [EosGuard(), EosGuardAround()], ids=lambda g: g.name)
def test_the_guard_works_with_every_policy_and_cache(guard, cache):
    broken = 0
    for unmasking in UNMASKING:
        settings = {"unmasking": unmasking, "cache": cache, "schedule": BLOCKS, "transforms": [LikesTheEnd()]}
        for wrappers in ([], [guard]):
            sampler = Sampler(tiny(), wrappers=wrappers, stop_at_eos=False, **settings)
            for step in sampler.steps(prompts_of([5, 8]), gen_length=16):
                decided = step.decision.commit & step.observation.eligible
                wrong = decided & end_behind_masks(step.state, step.observation)
                if wrappers:
                    assert not wrong.any()
                else:
                    broken += int(wrong.sum())
    assert broken > 0  # without the guard it happens


def test_later_wrappers_stand_around_earlier_ones():
    order = []

    class First(Wrapper):
        """Notes its turn."""

        name: ClassVar[str] = "first"

        def wrap_select(self):
            answer = yield
            order.append("first")
            return answer

    class Second(Wrapper):
        """Notes its turn."""

        name: ClassVar[str] = "second"

        def wrap_select(self):
            answer = yield
            order.append("second")
            return answer

    next(Sampler(tiny(), wrappers=[First(), Second()]).steps(prompts_of([4]), gen_length=4))
    assert order == ["first", "second"]


def test_transforms_apply_in_the_order_given():
    class Add(LogitsTransform):
        """Adds."""

        name: ClassVar[str] = "add"
        amount: float

        def transform(self, state, observation):
            return observation.logits + self.amount

    class Double(LogitsTransform):
        """Doubles."""

        name: ClassVar[str] = "double"

        def transform(self, state, observation):
            return observation.logits * 2

    plain = next(Sampler(tiny()).steps(prompts_of([4]), gen_length=4)).observation.logits
    both = next(Sampler(tiny(), transforms=[Add(amount=1.0), Double()]).steps(prompts_of([4]), gen_length=4))
    torch.testing.assert_close(both.observation.logits, (plain + 1) * 2)


def test_a_wrap_of_no_hook_is_refused_with_the_nearest():
    class Misspelt(Wrapper):
        """Wraps what is not there."""

        name: ClassVar[str] = "misspelt"

        def wrap_selection(self):
            yield

    with pytest.raises(PluginError, match=r"unknown hook 'selection'. Did you mean 'select'"):
        Sampler(tiny(), wrappers=[Misspelt()])


def test_an_argument_no_hook_has_is_refused():
    class Asks(Wrapper):
        """Asks for too much."""

        name: ClassVar[str] = "asks"

        def restrict(self, state, observations):
            return None

    with pytest.raises(PluginError, match="observations"):
        Sampler(tiny(), wrappers=[Asks()])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda o: o.log_confidence, "a tensor torch.float32"),
        (lambda o: o.masked[:, :1], r"torch.bool \[1, 1\]; it must be torch.bool \[1, 4\]"),
        (lambda o: None, "Wrong.select .unmasking. answered None; it must be a bool tensor or a Decision"),
    ],
)
def test_what_select_may_not_return(answer, message):
    class Wrong(UnmaskingPolicy):
        """Answers wrongly."""

        name: ClassVar[str] = "wrong"

        def select(self, state, observation):
            return answer(observation)

    with pytest.raises(PluginError, match=message):
        Sampler(tiny(), unmasking=Wrong()).generate(prompts_of([4]), gen_length=4)
