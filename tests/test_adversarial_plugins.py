"""Policies that answer wrongly, fail, leave or never make progress: each run ends, or is refused by name."""

from __future__ import annotations

import copy
import math
import random
import re
import sys
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from dllm_sampling import (
    BlockSchedule,
    CachePolicy,
    Decision,
    DecodingError,
    DllmSamplingError,
    ForwardPlan,
    LogitsTransform,
    Observer,
    PluginError,
    Positions,
    Region,
    Sampler,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.testing import tiny_model

GEN, LIMIT = 8, 400
PROMPTS = [[1, 2, 3], [4]]


def made(base, **methods):
    """A policy of a kind with these methods."""
    space = {"name": "adversary", "__annotations__": {"name": ClassVar[str]}, "__module__": __name__}
    return type("Adversary", (base,), space | methods)()


def run(**settings):
    """The steps of a run, at most LIMIT of them."""
    settings.setdefault("unmasking", {"name": "fixed_k", "k": 1})
    settings.setdefault("stop_at_eos", False)
    steps = Sampler(tiny_model(), **settings).steps(PROMPTS, GEN)
    for number, _ in enumerate(steps):
        assert number < LIMIT, "it goes on and on"
    return steps.result


def ones(observation, *shape, dtype=torch.bool):
    return torch.ones(*(shape or observation.masked.shape), dtype=dtype)


def decided(**fields):
    return lambda o: Decision(**{"commit": ones(o)} | {name: make(o) for name, make in fields.items()})


SELECTED = {
    "nothing": (lambda o: None, "answered None"),
    "a number": (lambda o: 1, "answered 1"),
    "a list": (lambda o: o.masked.tolist(), "bool tensor or a Decision"),
    "floats": (lambda o: o.log_confidence, "torch.float32"),
    "integers": (lambda o: o.masked.long(), "torch.int64"),
    "one column": (lambda o: o.masked[:, :1], r"\[2, 1\]"),
    "one row": (lambda o: o.masked[:1], r"\[1, 8\]"),
    "a row more": (lambda o: ones(o, 3, 8), r"\[3, 8\]"),
    "another dimension": (lambda o: o.masked[..., None], r"\[2, 8, 1\]"),
    "a commit of floats": (decided(commit=lambda o: ones(o).float()), "commit: a tensor torch.float32"),
    "no commit": (decided(commit=lambda o: None), "commit: None"),
    "a wide commit": (decided(commit=lambda o: ones(o, 2, 99)), r"commit: .*\[2, 99\]"),
    "floating tokens": (decided(tokens=lambda o: o.tokens.float()), "tokens: a tensor torch.float32"),
    "short tokens": (decided(tokens=lambda o: o.tokens[:, :3]), r"tokens: .*\[2, 3\]"),
    "tokens beyond": (decided(tokens=lambda o: o.tokens + 10**9), r"tokens hold ids outside \[0, 64\)"),
    "negative tokens": (decided(tokens=lambda o: o.tokens - 10**9), r"tokens hold ids outside"),
    "an overwrite of one row": (decided(overwrite=lambda o: o.masked[:1]), r"overwrite: .*\[1, 8\]"),
    "a remask of integers": (decided(remask=lambda o: ones(o).long()), "remask: a tensor torch.int64"),
    "a finish of columns": (decided(finish=lambda o: ones(o, 2, 1)), r"finish: .*\[2, 1\]"),
    "a finish that is True": (decided(finish=lambda o: True), "finish: True"),
}  # fmt: skip


@pytest.mark.parametrize("case", SELECTED)
def test_a_decision_is_checked_by_name(case):
    answer, message = SELECTED[case]
    policy = made(UnmaskingPolicy, select=lambda self, state, observation: answer(observation))
    with pytest.raises(PluginError, match=rf"Adversary.select \(unmasking\).*{message}"):
        run(unmasking=policy)


@pytest.mark.parametrize("case", [name for name in SELECTED if name != "nothing"])
def test_a_decision_set_on_a_step_is_checked_too(case):
    answer, message = SELECTED[case]
    steps = Sampler(tiny_model(), stop_at_eos=False).steps(PROMPTS, GEN)
    step = next(steps)
    decision = answer(step.observation)
    with pytest.raises(PluginError, match=rf"Step.decision.*{message}"):  # noqa: PT012 - ids are looked at later
        step.decision = decision
        steps.finish()


def test_a_decision_of_the_wrong_form_is_refused_at_once_and_leaves_the_old_one():
    steps = Sampler(tiny_model(), stop_at_eos=False).steps(PROMPTS, GEN)
    step = next(steps)
    before = step.decision
    with pytest.raises(PluginError, match="must be a bool tensor or a Decision"):
        step.decision = "all"
    assert step.decision is before


def test_a_decision_that_comes_too_late_is_refused():
    steps = Sampler(tiny_model(), stop_at_eos=False, unmasking={"name": "fixed_k", "k": 1}).steps(
        PROMPTS, GEN
    )
    step = next(steps)
    next(steps)
    with pytest.raises(PluginError, match="committed already"):
        step.decision = step.decision


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plan", "Step.plan is for reading: only decision"),
        ("observation", "Step.observation is for reading: only decision"),
        ("decison", "Step has no 'decison'. Did you mean 'decision'"),
        ("commit", "Step has no 'commit'"),
    ],
)
def test_nothing_but_the_decision_of_a_step_is_set(name, message):
    step = next(Sampler(tiny_model(), stop_at_eos=False).steps(PROMPTS, GEN))
    with pytest.raises(AttributeError, match=message):
        setattr(step, name, step.observation.masked)


def test_a_misspelt_field_of_a_step_or_a_decision_is_told_with_the_nearest():
    step = next(Sampler(tiny_model(), stop_at_eos=False).steps(PROMPTS, GEN))
    with pytest.raises(AttributeError, match="Did you mean 'observation'"):
        _ = step.observaton
    with pytest.raises(AttributeError, match="Did you mean 'commit'"):
        _ = step.decision.comit
    with pytest.raises(PluginError, match=r"Decision: unknown field 'remasks'\. Did you mean 'remask'"):
        Decision(step.observation.masked, remasks=step.observation.masked)


def test_a_decision_copies_and_replaces():
    decision = Decision(torch.ones(1, 2).bool())
    assert torch.equal(copy.deepcopy(decision).commit, decision.commit)
    assert replace(decision, finish=torch.ones(1).bool()).finish is not None


def test_a_mask_set_on_a_step_is_a_decision():
    steps = Sampler(tiny_model(), stop_at_eos=False).steps(PROMPTS, GEN)
    for step in steps:
        step.decision = step.observation.eligible
    assert steps.result.forwards == 1


@pytest.mark.parametrize("answer", [math.inf, math.nan, -7, 2.5, True, None, "3", 2**40, torch.tensor(3)])
def test_idle_steps_are_whole_numbers(answer):
    policy = made(
        UnmaskingPolicy,
        select=lambda self, state, observation: observation.eligible,
        idle_steps=lambda self, targets: answer,
    )
    with pytest.raises(PluginError, match=r"Adversary.idle_steps \(unmasking\) answered"):
        run(unmasking=policy)


def region(positions, blocks=None, span=None, starts_block=True):
    positions = torch.tensor(positions) if isinstance(positions, list) else positions
    blocks = torch.zeros_like(positions) if blocks is None else blocks
    return Region(Positions(positions, span), blocks, starts_block)


def columns(state, span=slice(0, 11)):
    """The whole canvas, said to be a span."""
    return Positions(state.columns.expand(state.batch, -1), span)


REGIONS = {
    "nothing": (lambda s: None, "answered None"),
    "a slice": (lambda s: slice(3, 11), "must be a Region"),
    "no position": (lambda s: region(torch.zeros(2, 0).long()), "an empty region"),
    "an empty span": (lambda s: Region.between(s, 5, 5), "an empty region"),
    "a span beyond": (lambda s: region([[3], [3]], span=slice(3, 99)), r"slice of columns in \[0, 11\)"),
    "a span of floats": (lambda s: region([[3], [3]], span=slice(3.0, 4.0)), "must be a slice"),
    "a span of other columns": (lambda s: region([[5, 6], [5, 6]], span=slice(3, 5)), "not the columns"),
    "a longer span": (lambda s: region([[3], [3]], span=slice(3, 6)), "has 3 columns, not 1"),
    "positions beyond": (lambda s: region([[3, 99], [3, 4]]), r"columns in \[0, 11\)"),
    "positions before": (lambda s: region([[3, -2], [3, 4]]), r"columns in \[0, 11\)"),
    "a position twice": (lambda s: region([[3, 4, 3], [3, 4, -1]]), "hold a column twice"),
    "floats": (lambda s: region([[3.0], [3.0]]), "positions: a tensor torch.float32"),
    "one row": (lambda s: region([[3, 4]]), r"positions: .*\[1, 2\]"),
    "no rows": (lambda s: region([3, 4]), r"positions: .*\[2\]"),
    "short blocks": (lambda s: region([[3, 4], [3, 4]], torch.zeros(2, 1).long()), r"blocks: .*\[2, 1\]"),
    "no blocks": (lambda s: Region([[3]], None), "positions: "),
    "an odd flag": (lambda s: region([[3], [3]], starts_block=1), "starts_block is 1"),
    "given text alone": (lambda s: region([[0], [0]]), "no open target of any row.*'adversary'"),
    "padding alone": (lambda s: region([[-1], [-1]]), "no open target of any row.*'adversary'"),
    "the first target for ever": (
        lambda s: Region.between(s, 3, 4, starts_block=s.forward_index == 0),
        "no open target of any row.*'adversary'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REGIONS)
def test_a_region_is_checked_by_name(case):
    answer, message = REGIONS[case]
    with pytest.raises(PluginError, match=message) as caught:
        run(schedule=made(BlockSchedule, plan_region=lambda self, state: answer(state)))
    assert "adversary" in str(caught.value).lower()


@pytest.mark.parametrize("case", REGIONS)
def test_a_wrapped_region_is_checked_by_name(case):
    answer, message = REGIONS[case]

    def wrap_plan_region(self, state):
        yield
        return answer(state)

    with pytest.raises(PluginError, match=message.replace("'adversary'", "wrapper")):
        run(wrappers=[made(Wrapper, wrap_plan_region=wrap_plan_region)])


def test_blocks_are_those_that_were_counted():
    def plan_region(self, state):
        return Region.between(state, state.first_target, state.length, block=7, starts_block=True)

    schedule = made(
        BlockSchedule,
        plan_region=plan_region,
        plan_blocks=lambda self, state: state.targets.sum(1, keepdim=True),
    )
    with pytest.raises(PluginError, match=r"blocks must be between 0 and 0"):
        run(schedule=schedule, unmasking={"name": "fixed_k", "steps": 4})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s: 4, "must be torch.int64"),
        (lambda s: torch.ones(2, 1), "torch.float32"),
        (lambda s: torch.ones(3, 1).long(), r"\[3, 1\]"),
        (lambda s: -torch.ones(2, 1).long(), "a negative number of targets"),
    ],
)
def test_counted_blocks_are_checked_by_name(answer, message):
    schedule = made(
        BlockSchedule,
        plan_region=lambda self, state: Region.between(state, 3, 11, starts_block=True),
        plan_blocks=lambda self, state: answer(state),
    )
    with pytest.raises(PluginError, match=rf"Adversary.plan_blocks \(schedule\).*{message}"):
        run(schedule=schedule)


PLANS = {
    "nothing": (lambda s: None, "answered None"),
    "a slice": (lambda s: slice(0, 11), "must be a ForwardPlan"),
    "an open slice": (lambda s: ForwardPlan(slice(None)), r"must be Positions, such as Positions.between"),
    "an empty slice": (lambda s: ForwardPlan.between(s, 4, 4), "planned no position"),
    "a slice beyond": (lambda s: ForwardPlan(columns(s, slice(0, 99))), r"a slice of columns in \[0, 11\)"),
    "a slice with a step": (lambda s: ForwardPlan(columns(s, slice(0, 11, 2))), "must be a slice"),
    "no position": (lambda s: ForwardPlan(torch.zeros(2, 0).long()), "planned no position"),
    "floats": (lambda s: ForwardPlan(torch.zeros(2, 1)), "positions: a tensor torch.float32"),
    "one row": (lambda s: ForwardPlan(torch.zeros(1, 1).long()), r"positions: .*\[1, 1\]"),
    "a column twice": (lambda s: ForwardPlan(torch.zeros(2, 2).long(), store=False), "a column twice"),
    "columns beyond": (lambda s: ForwardPlan(torch.full((2, 1), 99), store=False), r"columns in \[0, 11\)"),
    "a visible row": (lambda s: ForwardPlan.between(s, 0, 11, visible=s.valid[:1]), r"visible: .*\[1, 11\]"),
    "visible integers": (lambda s: ForwardPlan.between(s, 0, 11, visible=s.valid.long()), "visible: .*torch.int64"),
    "store None": (lambda s: ForwardPlan.between(s, 0, 11, store=None), "store is None"),
    "refresh 1": (lambda s: ForwardPlan(columns(s), refresh=1), "refresh is 1"),
    "refresh of a column": (lambda s: ForwardPlan(columns(s), refresh=s.valid[:, :1]), r"refresh: .*\[2, 1\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_is_checked_by_name(case):
    answer, message = PLANS[case]
    with pytest.raises(PluginError, match=rf"Adversary.plan_forward \(cache\).*{message}"):
        run(cache=made(CachePolicy, plan_forward=lambda self, state, region: answer(state)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda s: ForwardPlan.between(s, 0, 3), "must compute every visible position"),
        (
            lambda s: ForwardPlan.between(s, 0, 3, store=False),
            "the cache policy 'adversary' did not recompute",
        ),
    ],
)
def test_a_plan_that_leaves_no_way_forward_is_refused(plan, message):
    with pytest.raises(DecodingError, match=message):
        run(cache=made(CachePolicy, plan_forward=lambda self, state, region: plan(state)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda o: None, "answered None"),
        (lambda o: o.logits.long(), "torch.int64"),
        (lambda o: o.logits[..., :-1], r"\[2, 8, 63\]"),
        (lambda o: torch.cat([o.logits, o.logits], -1), r"\[2, 8, 128\]"),
        (lambda o: o.logits[:1], r"\[1, 8, 64\]"),
        (lambda o: o.logits[:, :1], r"\[2, 1, 64\]"),
    ],
)
def test_transformed_logits_are_checked_by_name(answer, message):
    transform = made(LogitsTransform, transform=lambda self, state, observation: answer(observation))
    with pytest.raises(PluginError, match=rf"Adversary.transform \(transforms\[0\]\).*{message}"):
        run(transforms=[transform])


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_logits_that_are_no_prediction_are_refused(value):
    def transform(self, state, observation):
        return torch.full_like(observation.logits, value)

    with pytest.raises(DecodingError, match=r"logits of forward 0, row 0, position 3 (hold|are all)"):
        run(transforms=[made(LogitsTransform, transform=transform)])


def test_logits_of_another_precision_are_taken():
    def transform(self, state, observation):
        return observation.logits.double()

    result = run(transforms=[made(LogitsTransform, transform=transform)])
    assert torch.equal(result.sequences, run().sequences)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda o: None, "answered None|None"),
        (lambda o: True, "True"),
        (lambda o: o.masked.float(), "torch.float32"),
        (lambda o: o.masked[:1], r"\[1, 8\]"),
        (lambda o: o.masked[:, :1], r"\[2, 1\]"),
    ],
)
def test_a_restriction_is_checked_by_name(answer, message):
    wrapper = made(Wrapper, restrict=lambda self, state, observation: answer(observation))
    with pytest.raises(PluginError, match=rf"Adversary.restrict \(wrappers\[0\]\).*({message})"):
        run(wrappers=[wrapper])


def test_a_restriction_that_allows_nothing_forces_every_commit():
    wrapper = made(Wrapper, restrict=lambda self, state, observation: ~ones(observation))
    assert run(wrappers=[wrapper]).forced == 2 * GEN


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s: None, "a mapping of names"),
        (lambda s: s.tokens, "a mapping of names"),
        (lambda s: {0: s.tokens}, "a mapping of names"),
        (lambda s: {"a": s.tokens[:1]}, r"canvas 'a': .*\[1, 11\]"),
        (lambda s: {"a": s.tokens.float()}, "canvas 'a': .*torch.float32"),
        (lambda s: {"a": s.tokens + 10**6}, r"canvas 'a' holds ids outside \[0, 64\)"),
    ],
)
def test_further_canvases_are_checked_by_name(answer, message):
    wrapper = made(Wrapper, canvases=lambda self, state, plan: answer(state))
    with pytest.raises(PluginError, match=rf"Adversary.canvases \(wrappers\[0\]\).*{message}"):
        run(wrappers=[wrapper])


# What a policy may answer at all ------------------------------------------------------------------

OWN = {
    "unmasking": (UnmaskingPolicy, "select"),
    "cache": (CachePolicy, "plan_forward"),
    "schedule": (BlockSchedule, "plan_region"),
    "transforms": (LogitsTransform, "transform"),
    "wrappers": (Wrapper, None),
    "observers": (Observer, None),
}
HOOKS = {
    "select": {"unmasking"},
    "plan_forward": {"cache"},
    "plan_region": {"schedule"},
    "plan_blocks": {"schedule"},
    "restrict": {"schedule", "wrappers"},
    "canvases": {"unmasking", "transforms", "wrappers"},
    "wrap_select": {"wrappers"},
    "wrap_plan_region": {"wrappers"},
}


@pytest.mark.parametrize("slot", OWN)
@pytest.mark.parametrize("hook", HOOKS)
def test_each_kind_answers_only_its_own_hooks(slot, hook):
    def answer(self, state):
        return None

    def wrap(self, state):
        yield

    method = wrap if hook.startswith("wrap_") else answer
    base, own = OWN[slot]
    policy = made(base, **({own: lambda self, state: None} if own else {}) | {hook: method})
    settings = {slot: [policy] if slot in ("transforms", "wrappers", "observers") else policy}
    if slot in HOOKS[hook]:
        Sampler(tiny_model(), **settings)
        return
    with pytest.raises(PluginError, match=f"Adversary.{hook} .{slot}.*does not answer {hook}; its hooks are"):
        Sampler(tiny_model(), **settings)


def test_an_unknown_argument_is_refused_with_the_nearest():
    policy = made(UnmaskingPolicy, select=lambda self, state, observaton: observaton.eligible)
    with pytest.raises(PluginError, match=r"unknown argument 'observaton'\. Did you mean 'observation'"):
        Sampler(tiny_model(), unmasking=policy)


def test_arguments_may_be_left_out_and_stand_in_any_order():
    policy = made(
        UnmaskingPolicy, select=lambda self, observation, extra=3, *rest, **more: observation.eligible
    )
    assert run(unmasking=policy).forwards == 1


# Failing and leaving ------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("not even that")


FAILURES = {
    "an error": lambda: 1 / 0,
    "exit": lambda: sys.exit("no GPU"),
    "skip": lambda: pytest.skip("not here"),
    "an error that cannot be printed": lambda: (_ for _ in ()).throw(Unprintable),
    "a bare exception": lambda: (_ for _ in ()).throw(BaseException("x")),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(
    ("slot", "base", "hook"),
    [
        ("unmasking", UnmaskingPolicy, "select"),
        ("unmasking", UnmaskingPolicy, "idle_steps"),
        ("cache", CachePolicy, "plan_forward"),
        ("schedule", BlockSchedule, "plan_region"),
        ("transforms", LogitsTransform, "transform"),
        ("wrappers", Wrapper, "wrap_select"),
        ("observers", Observer, "committed"),
        ("observers", Observer, "begin"),
        ("observers", Observer, "end"),
    ],
)
def test_a_policy_that_fails_or_leaves_is_named(failure, slot, base, hook):
    if hook.startswith("wrap_"):

        def method(self):
            yield
            FAILURES[failure]()

    elif hook == "idle_steps":

        def method(self, targets):
            FAILURES[failure]()

    else:

        def method(self, state):
            FAILURES[failure]()

    methods = {hook: method} | ({"select": lambda self, state: None} if hook == "idle_steps" else {})
    policy = made(base, **methods)
    many = slot in ("transforms", "wrappers", "observers")
    path = f"{slot}[0]" if many else slot
    with pytest.raises(PluginError) as caught:
        run(**{slot: [policy] if many else policy})
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"Adversary.{hook} ({path}) failed: ")
    assert lines
    assert all(re.fullmatch(r"\S*test_adversarial_plugins\.py, line \d+, in \S+: .+", line) for line in lines)
    assert "FAILURES[failure]()" in str(caught.value)


def test_the_lines_of_a_policy_that_another_one_calls_are_shown():
    class Inner(UnmaskingPolicy):
        name: ClassVar[str] = "inner"

        def select(self, state, observation):
            return observation.eligible[99]

    with pytest.raises(PluginError) as caught:
        run(unmasking={"name": "with_budget", "policy": Inner(), "k": 2})
    assert str(caught.value).startswith("WithBudget.select (unmasking) failed: IndexError: ")
    assert str(caught.value).splitlines()[-1].endswith("in select: return observation.eligible[99]")


def test_the_user_may_interrupt_a_policy():
    def select(self, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(unmasking=made(UnmaskingPolicy, select=select))


def test_what_a_policy_remembers_has_a_row_for_each():
    def select(self, state, observation):
        state.memory(self)["odd"] = torch.zeros(3)
        finish = torch.tensor([True, False]) if state.batch == 2 else None
        return Decision(observation.eligible & (observation.eligible.cumsum(1) == 1), finish=finish)

    with pytest.raises(PluginError, match=r"unmasking remembers 'odd' as a tensor \[3\]"):
        run(unmasking=made(UnmaskingPolicy, select=select))


@pytest.mark.parametrize("values", [torch.zeros(2), torch.zeros(3, 1).long(), torch.zeros(2, 1)])
def test_what_a_policy_carries_is_checked_by_name(values):
    def select(self, state, observation):
        state.carry(self, values)
        return observation.eligible

    with pytest.raises(PluginError, match=r"Adversary \(unmasking\) carries"):
        run(unmasking=made(UnmaskingPolicy, select=select))


# Never any progress -------------------------------------------------------------------------------


def test_a_policy_that_undoes_what_it_does_ends():
    """All it may, it masks again; then what it does is held to one commit a step."""

    def select(self, state, observation):
        return Decision(~ones(observation), remask=observation.committed)

    patience = 30
    policy = made(UnmaskingPolicy, select=select, idle_steps=lambda self, targets: patience)
    result = run(unmasking=policy)
    assert int(result.row_forwards.max()) <= GEN + patience


@pytest.mark.parametrize("hook", ["committed", "block_started"])
def test_an_observer_that_opens_targets_again_does_not_keep_a_run_going(hook):
    """Tensors cannot be locked; but the loop counts its own steps."""
    observer = made(Observer, **{hook: lambda self, state: state.masked.copy_(state.targets)})
    schedule = made(
        BlockSchedule, plan_region=lambda self, state: Region.between(state, 3, 11, starts_block=True)
    )
    with pytest.raises(
        PluginError, match="no more are ever needed: a policy of this run writes into the state"
    ):
        run(observers=[observer], schedule=schedule)


def test_the_first_region_starts_a_block_whatever_its_schedule_says():
    schedule = made(BlockSchedule, plan_region=lambda self, state: Region.between(state, 3, 11))
    result = run(schedule=schedule, cache="dual", unmasking="dilated")
    assert (result.refreshes, result.forced) == (1, 0)


@pytest.mark.parametrize("seed", range(150))
def test_random_answers_end_or_are_refused(seed):
    """Answers of the right form and wrong content: random masks, tokens, regions, plans and restrictions."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    share = rng.choice([0.0, 0.1, 0.5, 1.0])

    def mask(*shape):
        return torch.rand(*shape, generator=generator) < share

    def select(self, state, observation):
        shape = observation.masked.shape
        if rng.random() < 0.5:
            return mask(*shape)
        tokens = torch.randint(0, 64, shape, generator=generator)
        return Decision(
            mask(*shape), tokens, mask(*shape), mask(*shape), mask(state.batch) & mask(state.batch)
        )

    def plan_region(self, state):
        width = rng.randint(1, state.length)
        order = torch.rand(state.batch, state.length, generator=generator).argsort(1)[:, :width]
        positions = order.masked_fill(mask(*order.shape) & (rng.random() < 0.5), -1)
        return Region(positions, positions.clamp_min(0) // 3, rng.random() < 0.3)

    def plan_forward(self, state, region):
        if state.forward_index == 0 or rng.random() < 0.3:
            return ForwardPlan.full(state)
        wanted = mask(*state.tokens.shape) | state.masked if rng.random() < 0.7 else mask(*state.tokens.shape)
        return ForwardPlan.of(wanted, state.length, refresh=mask(state.batch))

    settings = {
        "unmasking": made(
            UnmaskingPolicy, select=select, idle_steps=lambda self, targets: rng.choice([0, 3])
        ),
        "wrappers": [made(Wrapper, restrict=lambda self, observation: mask(*observation.masked.shape))],
    }
    if rng.random() < 0.5:
        settings["cache"] = made(CachePolicy, plan_forward=plan_forward)
    if rng.random() < 0.5:
        settings["schedule"] = made(BlockSchedule, plan_region=plan_region)
    try:
        result = run(**settings)
    except DllmSamplingError as error:
        refusal = str(error).lower()
    else:
        refusal = None
        assert int(result.row_forwards.max()) <= GEN + 3
    assert refusal is None or "adversary" in refusal


def test_answers_that_all_count_are_wrapped_as_a_list():
    seen = []

    def wrap_restrict(self, state, observation):
        answers = yield
        seen.append(len(answers))
        return [*answers, observation.positions.columns < 5]

    wrappers = [
        made(Wrapper, restrict=lambda self, observation: observation.masked, wrap_restrict=wrap_restrict)
    ]
    steps = Sampler(tiny_model(), wrappers=wrappers, stop_at_eos=False).steps(PROMPTS, GEN)
    assert not next(steps).observation.eligible[:, 2:].any()
    assert seen == [1]


@pytest.mark.parametrize("answer", [None, torch.ones(2, 8).bool(), [torch.ones(2, 8)], [None]])
def test_wrapped_lists_are_checked_by_name(answer):
    def wrap_restrict(self):
        yield
        return answer

    with pytest.raises(PluginError, match=r"Adversary\.wrap_restrict"):
        run(wrappers=[made(Wrapper, wrap_restrict=wrap_restrict)])
