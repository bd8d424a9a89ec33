"""Hooks around a run: close, forbid, places, a forward beside the loop; and what a policy may not write."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from dllm_sampling import (
    DecodingError,
    LogitsTransform,
    Observer,
    PluginError,
    PromptError,
    Sampler,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.engine import outcome
from dllm_sampling.testing import ChosenModel, observe

from .models import prompts_of, tiny

BLOCKS = {"name": "fixed_blocks", "block_length": 4}
CLOSED: list[str] = []


class Closing(Observer):
    """Notes that its batch is over."""

    name: ClassVar[str] = "closing"
    fails: bool = False

    def begin(self, state):
        state.shared(self)["rows"] = state.batch

    def close(self, state):
        CLOSED.append(f"{state.shared(self).get('rows')} rows, {state.forward_index} forwards")
        if self.fails:
            raise ValueError("cannot close")


class Breaking(Observer):
    """Breaks at its second step."""

    name: ClassVar[str] = "breaking"

    def committed(self, state):
        if state.forward_index == 2:
            raise ValueError("broken on purpose")


@pytest.fixture(autouse=True)
def nothing_closed():
    CLOSED.clear()


def sampler(**settings):
    return Sampler(tiny(), **{"schedule": BLOCKS, "stop_at_eos": False, "batch_size": 2, **settings})


# close ----------------------------------------------------------------------------------------------


def test_close_is_called_once_a_batch():
    result = sampler(observers=[Closing()]).generate(prompts_of([3, 4, 5]), 8)
    assert len(CLOSED) == 2
    assert [line.split(",")[0] for line in CLOSED] == ["2 rows", "1 rows"]
    assert sum(int(line.split(", ")[1].split()[0]) for line in CLOSED) == result.forwards


def test_close_is_called_when_a_run_breaks_and_the_break_is_what_is_told():
    with pytest.raises(PluginError, match=r"Breaking.committed.*broken on purpose"):
        sampler(observers=[Closing(fails=True), Breaking()]).generate(prompts_of([3]), 8)
    assert CLOSED == ["1 rows, 2 forwards"]


def test_close_is_called_when_a_run_is_left():
    run = sampler(observers=[Closing()]).steps(prompts_of([3]), 8)
    next(run)
    run.close()
    assert CLOSED == ["1 rows, 0 forwards"]
    with pytest.raises(StopIteration):
        next(run)
    with sampler(observers=[Closing()]).steps(prompts_of([3]), 8) as run:
        next(run)
        next(run)
    assert CLOSED[1:] == ["1 rows, 1 forwards"]


def test_every_policy_is_closed_although_one_fails():
    with pytest.raises(PluginError, match=r"Closing.close .*cannot close"):
        sampler(observers=[Closing(fails=True), Closing()]).generate(prompts_of([3]), 4)
    assert len(CLOSED) == 2


def test_a_run_that_never_began_closes_nothing():
    sampler(observers=[Closing()]).steps(prompts_of([3]), 8).close()
    assert CLOSED == []


# forbid ---------------------------------------------------------------------------------------------


class Never(UnmaskingPolicy):
    """Leaves every commit to the engine."""

    name: ClassVar[str] = "never"

    def select(self, state, observation):
        return torch.zeros_like(observation.masked)


class FromTheRight(Wrapper):
    """Nothing is committed while an open target of the region stands to its right."""

    name: ClassVar[str] = "from_the_right"

    def forbid(self, state, observation):
        columns = observation.positions.columns
        last = columns.where(observation.masked, -1).amax(1, keepdim=True)
        return columns < last


class Everything(Wrapper):
    """Forbids all from the third step on."""

    name: ClassVar[str] = "everything"

    def forbid(self, state, observation):
        return torch.full_like(observation.masked, state.forward_index >= 2)


def test_what_is_forbidden_is_not_forced_either():
    result = sampler(unmasking=Never(), wrappers=[FromTheRight()], schedule="whole_canvas").generate(
        prompts_of([3, 5]), 6
    )
    assert result.forward_of_position.tolist() == [[5, 4, 3, 2, 1, 0]] * 2
    assert result.forced == 12


def test_what_is_forbidden_is_not_committed():
    result = sampler(
        unmasking={"name": "fixed_k", "k": 3}, wrappers=[FromTheRight()], schedule="whole_canvas"
    ).generate(prompts_of([3]), 6)
    assert result.forward_of_position.tolist() == [[5, 4, 3, 2, 1, 0]]
    assert result.forced == 0


def test_a_row_that_is_left_nothing_is_named_with_who_left_it_so():
    chosen = sampler(unmasking={"name": "fixed_k", "k": 1}, wrappers=[Everything()], batch_size=8)
    with pytest.raises(PluginError, match=r"wrappers\[0\] forbids every open position .* row \d, .*one now"):
        chosen.generate(prompts_of([3, 4]), 8)


def test_forbid_answers_for_itself():
    class Around(Wrapper):
        name: ClassVar[str] = "around"

        def wrap_forbid(self, state):
            return (yield)

    with pytest.raises(PluginError, match="forbid cannot be wrapped"):
        sampler(wrappers=[Around()])


# places ---------------------------------------------------------------------------------------------


def test_places_are_those_of_the_prompts_in_the_call():
    seen = {}

    class Places(Observer):
        name: ClassVar[str] = "places"

        def committed(self, state):
            for row, place in enumerate(state.places):
                length = int(state.valid[row].sum())
                seen.setdefault(length, set()).add(place)

    sampler(observers=[Places()], batch_size=3).generate(prompts_of([3, 9, 5, 7]), 4, places=[10, 11, 12, 13])
    assert seen == {7: {10}, 13: {11}, 9: {12}, 11: {13}}


# Run.forward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_forward_beside_the_loop_is_counted_and_changes_nothing(cache):
    one = {"unmasking": "fixed_k", "cache": cache}
    plain = sampler(**one).generate(prompts_of([3, 5]), 8)
    run, beside = sampler(**one).steps(prompts_of([3, 5]), 8), 0
    for step in run:
        if beside < 3:
            seen = run.forward(step.state.tokens)
            beside += 1
            assert seen.logits.shape == step.observation.logits.shape
            if cache == "none":
                torch.testing.assert_close(seen.logits, step.observation.logits)
    assert torch.equal(run.result.sequences, plain.sequences)
    assert torch.equal(run.result.forward_of_position, plain.forward_of_position)
    assert run.result.forwards == plain.forwards + 3
    assert run.result.positions_computed == plain.positions_computed + 3 * 2 * (5 + 8)
    assert (run.result.row_forwards - plain.row_forwards).tolist() == [3, 3]
    assert run.result.refreshes == plain.refreshes
    assert run.result is run.result


def test_a_forward_beside_the_loop_reads_the_tokens_it_is_given():
    run = sampler().steps(prompts_of([3]), 8)
    step = next(run)
    other = step.state.tokens.clone()
    other[:, 4] = 1
    before = step.state.tokens.clone()
    assert not torch.allclose(run.forward(other).logits, step.observation.logits)
    assert torch.equal(step.state.tokens, before)


def test_a_forward_needs_a_step_and_tokens_that_fit():
    run = sampler().steps(prompts_of([3]), 4)
    with pytest.raises(DecodingError, match="needs a step at hand"):
        run.forward(torch.zeros(1, 7, dtype=torch.long))
    step = next(run)
    for wrong in (step.state.tokens[:, 1:], step.state.tokens.float(), [[1] * 7]):
        with pytest.raises(PromptError, match=r"integers \[1, 7\]"):
            run.forward(wrong)
    for _ in run:
        pass
    with pytest.raises(DecodingError, match="needs a step at hand"):
        run.forward(torch.zeros(1, 7, dtype=torch.long))


# Results --------------------------------------------------------------------------------------------


def test_a_result_is_built_only_for_whoever_wants_it(monkeypatch):
    built = []
    merged = outcome.merged
    monkeypatch.setattr(outcome, "merged", lambda *given: built.append(1) or merged(*given))
    sampler(observers=[Closing()]).generate(prompts_of([3]), 4)
    assert built == []

    class End(Observer):
        name: ClassVar[str] = "end"

        def end(self, state, result):
            assert result.sequences.shape == (1, 7)

    sampler(observers=[End()]).generate(prompts_of([3]), 4)
    assert built == [1]


# Only the engine writes -----------------------------------------------------------------------------


def test_the_state_cannot_be_assigned():
    state, observation = observe(torch.zeros(1, 3, 5))
    for name in ("tokens", "masked", "row_steps", "next_open", "rows", "facts", "invented"):
        with pytest.raises(AttributeError, match=f"DecodingState.{name} cannot be assigned"):
            setattr(state, name, 1)
    with pytest.raises(AttributeError):
        observation.logits = None


def test_memory_is_rows_and_shared_is_the_rest():
    policy = Never()
    state, _ = observe(torch.zeros(2, 3, 5), policy=policy)
    memory, shared = state.memory(policy), state.shared(policy)
    memory["kept"], shared["table"] = torch.tensor([1, 2]), torch.arange(9)
    for value in (3, None, torch.zeros(3, 2), torch.zeros(())):
        with pytest.raises(PluginError, match=r"policy remembers 'x' as .*state.shared"):
            memory["x"] = value
    with pytest.raises(PluginError, match=r"state\.shared"):
        memory.setdefault("x", [])
    state.select_rows([1, 1, 0])  # an index may repeat: populations
    assert state.memory(policy)["kept"].tolist() == [2, 2, 1]
    assert shared["table"].tolist() == list(range(9))
    assert state.tokens.shape == (3, 4)
    assert state.places == [1, 1, 0]
    memory["kept"] = torch.zeros(3)


# Logits that are no numbers -------------------------------------------------------------------------


class Emptying(LogitsTransform):
    """Leaves one position no token, or a NaN."""

    name: ClassVar[str] = "emptying"
    value: str = "minus infinity"

    def transform(self, state, observation):
        logits = observation.logits.clone()
        if state.forward_index == 1:
            logits[-1, 1] = -torch.inf if self.value == "minus infinity" else torch.nan
        return logits


@pytest.mark.parametrize(
    ("value", "message"),
    [("minus infinity", "row 1, position 6 are all minus infinity"), ("nan", "row 1, position 6 hold NaN")],
)
def test_logits_that_choose_nothing_are_named_as_what_they_are(value, message):
    model = ChosenModel(lambda ids, _: torch.zeros(*ids.shape, 9), 9)
    chosen = Sampler(
        model,
        unmasking={"name": "fixed_k", "k": 1},
        transforms=[Emptying(value=value)],
        schedule={"name": "fixed_blocks", "block_length": 8},
    )
    with pytest.raises(DecodingError, match=message):
        chosen.generate(torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]), 8)


def test_a_write_in_place_into_one_count_shows_in_no_other():
    state, _ = observe(torch.zeros(2, 3, 5))
    state.tensors.steps.add_(1)
    for name in ("block_steps", "forwards_beside", "forced", "remasks", "refreshes", "idle_left"):
        assert getattr(state.tensors, name).tolist() == [0, 0], name
