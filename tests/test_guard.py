"""What a step shows and what committing it does, against a slow version that writes one cell at a time.

A scripted policy asks for everything at once: commits, overwrites, remasks, foreign tokens, rows ended;
regions are spans or differ from row to row, some predictions are stale, some targets are held back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import BlockSchedule, Decision, Observer, Region, Sampler, UnmaskingPolicy
from tests.slow import Drifting, Holes, Patchy, Row, in_call_order, model, prompts, ranked, rows_of, scrambled

KEPT = ("tokens", "masked", "targets", "committed_at", "committed_confidence")
COUNTED = ("row_steps", "block_steps", "row_forced", "row_remasks", "row_refreshes")


class Scripted(UnmaskingPolicy):
    """Asks for commits, overwrites, remasks and ends at random, of places it may and may not touch."""

    name: ClassVar[str] = "scripted"
    seed: int = 0
    patience: int = 0
    commits: float = 0.3
    remasks: float | None = 0.3
    overwrites: float | None = 0.3
    tokens: bool = True
    ends: float | None = None

    def idle_steps(self, targets):
        return self.patience

    def select(self, state, observation):
        def draw(purpose, share):
            drawn = [
                [scrambled(self.seed, state.rows[i], p, state.row_steps[i], purpose) < share for p in row]
                for i, row in enumerate(observation.positions.columns.tolist())
            ]
            return torch.tensor(drawn)

        tokens = None
        if self.tokens:
            width = state.facts.vocab_size  # the mask is among them
            tokens = torch.tensor(
                [
                    [int(scrambled(self.seed, p, state.row_steps[i], 11) * width) for p in row]
                    for i, row in enumerate(observation.positions.columns.tolist())
                ]
            )
        finish = None
        if self.ends is not None:
            clocks = zip(state.rows, state.row_steps.tolist(), strict=True)
            finish = torch.tensor([scrambled(self.seed, row, at, 13) < self.ends for row, at in clocks])
        return Decision(
            draw(1, self.commits),
            tokens=tokens,
            overwrite=None if self.overwrites is None else draw(2, self.overwrites),
            remask=None if self.remasks is None else draw(3, self.remasks),
            finish=finish,
        )


@dataclass
class Before:
    """A row before a step is committed."""

    seen: Row
    tokens: list
    masked: list
    targets: list
    committed_at: list
    committed_confidence: list
    counts: dict
    decision: dict
    idle_left: int
    result: dict = field(default_factory=dict)


def lists(tensor):
    return None if tensor is None else tensor.tolist()


def snapshot(step, idle_left):
    state, found = step.state, {}
    decision = {
        n: lists(getattr(step.decision, n)) for n in ("commit", "tokens", "overwrite", "remask", "finish")
    }
    kept = {name: getattr(state, name).tolist() for name in KEPT}
    counts = {name: getattr(state, name).tolist() for name in COUNTED}
    for i, seen in enumerate(rows_of(step)):
        found[seen.row] = Before(
            seen=seen,
            **{name: values[i] for name, values in kept.items()},
            counts={name: values[i] for name, values in counts.items()},
            decision={name: None if values is None else values[i] for name, values in decision.items()},
            idle_left=idle_left[seen.row],
        )
    return found


def committed_slowly(row, forward, banned, mask, refreshed):
    """What a step must come to: one row, a cell at a time."""
    seen, asked = row.seen, row.decision
    commit = {j for j in seen.inside if asked["commit"][j] and seen.eligible[j]}
    remask = {j for j in seen.inside if asked["remask"] and asked["remask"][j] and seen.committed[j]}
    over = {j for j in seen.inside if asked["overwrite"] and asked["overwrite"][j] and seen.committed[j]}
    active = any(seen.masked[j] for j in seen.inside)
    if not active:  # a row that waits for its batch mates is left alone
        remask, over = set(), set()
    cost = max(0, 1 - (len(commit) - len(remask))) if active else 0
    forced = set()
    if cost > row.idle_left:
        remask = set()
        if not commit:
            among = [j for j in seen.inside if seen.eligible[j]]
            among = among or [j for j in seen.inside if seen.masked[j] and seen.fresh[j]]
            leftmost = min(seen.blocks[j] for j in among)
            forced = set(ranked([j for j in among if seen.blocks[j] == leftmost], seen.log_c)[:1])
            commit = set(forced)
    else:
        row.idle_left -= cost
    over -= remask
    for j in commit | over:
        p = seen.positions[j]
        token = seen.token(j)
        if asked["tokens"] and asked["tokens"][j] not in banned:
            token = asked["tokens"][j]
        row.tokens[p], row.masked[p], row.committed_at[p] = token, False, forward
        row.committed_confidence[p] = seen.p[j][token]
    for j in remask:
        p = seen.positions[j]
        row.tokens[p], row.masked[p], row.committed_at[p] = mask, True, -1
        row.committed_confidence[p] = math.nan
    row.counts["row_forced"] += len(forced)
    row.counts["row_remasks"] += len(remask)
    for clock in ("row_steps", "block_steps"):
        row.counts[clock] += active
    row.counts["row_refreshes"] += active and refreshed
    row.result = {"commit": commit, "overwrite": over, "remask": remask, "forced": forced}
    return row


class Watching(Observer):
    """Hands on what the engine says was done, and the canvas right after it."""

    name: ClassVar[str] = "watching"
    log: ClassVar[list] = []

    def committed(self, state, observation, decision):
        kept = {name: getattr(state, name).tolist() for name in KEPT + COUNTED}
        decided = {name: lists(getattr(decision, name)) for name in ("commit", "overwrite", "remask")}
        seen = {
            name: getattr(observation, name).tolist() for name in ("masked", "committed", "eligible", "fresh")
        }
        self.log.append((list(state.rows), kept, decided, seen))


def plan_of(step):
    """The planned columns of every row, and in which rows every visible position is computed."""
    state, plan = step.state, step.plan
    columns = [{p for p in row if p >= 0} for row in plan.positions.columns.tolist()]
    visible = state.valid if plan.visible is None else state.valid & plan.visible
    seen = [{p for p, x in enumerate(row) if x} for row in visible.tolist()]
    return columns, [shown <= computed for shown, computed in zip(seen, columns, strict=True)]


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) < 1e-4


@given(
    st.builds(
        Scripted,
        seed=st.integers(0, 10**6),
        patience=st.sampled_from([0, 0, 2, 9]),
        commits=st.sampled_from([0.0, 0.1, 0.4]),
        remasks=st.sampled_from([None, 0.2, 0.6]),
        overwrites=st.sampled_from([None, 0.4]),
        tokens=st.booleans(),
        ends=st.sampled_from([None, None, 0.1]),
    ),
    st.sampled_from(
        [
            {"name": "fixed_blocks", "block_length": 4},
            {"name": "whole_canvas"},
            {"name": "multi_block", "block_length": 3},
            Drifting(),
        ]
    ),
    st.sampled_from(["none", Patchy(share=0.4), Patchy(share=0.8)]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 10**6),
)
@settings(max_examples=80)
def test_a_step_does_what_was_decided_cell_by_cell(policy, schedule, cache, lengths, gen, holes, seed):
    Watching.log.clear()
    sampler = Sampler(
        model(seed, scale=2.0, period=[10**6, 2][seed % 2]),
        unmasking=policy,
        schedule=schedule,
        cache=cache,
        wrappers=[Holes(share=holes)] if holes else [],
        observers=[Watching()],
        stop_at_eos=False,
    )
    idle_left = dict.fromkeys(range(len(lengths)), policy.patience)
    before, limit, taken = None, policy.patience + gen, dict.fromkeys(range(len(lengths)), 0)
    run = sampler.steps(prompts(lengths), gen)
    for step in run:
        if before is not None:
            check(before, Watching.log.pop(), taken)
            # Rows that were ended have left, as far as they did not only wait.
            ended = {r for r, row in before.items() if row.decision["finish"] and any(row.seen.masked)}
            assert not ended & set(step.state.rows)
        columns, refreshed = plan_of(step)
        before = snapshot(step, idle_left)
        check_seen(step, columns)
        for i, row in enumerate(before.values()):
            facts = step.state.facts
            committed_slowly(
                row, step.state.forward_index, row.seen.banned, facts.mask_token_id, refreshed[i]
            )
            idle_left[row.seen.row] = row.idle_left
    check(before, Watching.log.pop(), taken)
    assert all(n <= limit for n in taken.values())
    result = run.result
    order = [
        sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)).index(i) for i in range(len(lengths))
    ]
    assert result.row_forwards.tolist() == [taken[i] for i in order]


def check_seen(step, columns):
    """The observation is what the canvas and the plan say."""
    state, seen = step.state, step.observation
    masked, targets = state.masked.tolist(), state.targets.tolist()
    positions = step.region.positions.columns.tolist()
    for i, row in enumerate(positions):
        for j, p in enumerate(row):
            fresh = p >= 0 and p in columns[i]
            assert bool(seen.masked[i, j]) == (p >= 0 and masked[i][p])
            assert bool(seen.committed[i, j]) == (fresh and targets[i][p] and not masked[i][p])
            assert not seen.eligible[i, j] or (fresh and masked[i][p])
            assert p < 0 or bool(seen.fresh[i, j]) == fresh
    assert seen.positions.columns.tolist() == positions


def check(before, entry, taken):
    rows, kept, decided, seen = entry
    assert rows == list(before)
    for i, row in enumerate(before.values()):
        for name in ("tokens", "masked", "committed_at"):
            assert kept[name][i] == getattr(row, name), name
        confidences = zip(kept["committed_confidence"][i], row.committed_confidence, strict=True)
        assert all(same(a, b) for a, b in confidences)
        for name in COUNTED:
            assert kept[name][i] == row.counts[name], name
        for name in ("commit", "overwrite", "remask"):
            done = set() if decided[name] is None else {j for j, x in enumerate(decided[name][i]) if x}
            assert done == row.result[name], name
        # What was seen is as it was, though the canvas has changed.
        for name in ("masked", "committed", "eligible", "fresh"):
            assert [bool(x) for x in seen[name][i]] == [bool(x) for x in getattr(row.seen, name)], name
        taken[row.seen.row] += any(row.seen.masked)


def steps_with(decide, *, gen=6, patience=0, **more):
    """The steps of one row whose decisions `decide(step)` makes."""

    class Decides(UnmaskingPolicy):
        """Nothing by itself."""

        name: ClassVar[str] = "decides"

        def select(self, state, observation):
            return torch.zeros_like(observation.masked)

        def idle_steps(self, targets):
            return patience

    settings = {"schedule": "whole_canvas", "stop_at_eos": False} | more
    run = Sampler(model(1), unmasking=Decides(), **settings).steps([[1, 2]], gen)
    for step in run:
        step.decision = decide(step)
        yield step
    return run


def at(step, *places):
    mask = torch.zeros_like(step.observation.masked)
    mask[0, list(places)] = True
    return mask


def test_a_remask_wins_over_an_overwrite():
    def decide(step):
        if step.state.forward_index == 0:
            return Decision(at(step, 0, 1, 2))
        if step.state.forward_index == 1:
            new = torch.full_like(step.observation.tokens, 3)
            return Decision(at(step, 4), tokens=new, overwrite=at(step, 0, 1), remask=at(step, 1))
        return Decision(step.observation.eligible)

    seen = []
    for step in steps_with(decide, patience=3):
        state = step.state
        seen.append(
            (state.tokens[0, 2:].tolist(), state.masked[0, 2:].tolist(), state.committed_at[0, 2:].tolist())
        )
    mask = step.state.facts.mask_token_id
    tokens, masked, committed_at = seen[2]
    assert (tokens[0], tokens[1], tokens[4]) == (3, mask, 3)
    assert masked == [False, True, False, True, False, True]
    assert committed_at == [1, -1, 0, -1, 1, -1]


def test_what_is_forced_is_in_the_leftmost_block_though_another_is_surer():
    class Two(BlockSchedule):
        """Two blocks of three at once; the second stands first."""

        name: ClassVar[str] = "two"

        def plan_region(self, state):
            columns = torch.tensor([5, 6, 7, 2, 3, 4]).expand(state.batch, -1)
            blocks = torch.tensor([1, 1, 1, 0, 0, 0]).expand(state.batch, -1)
            return Region(columns, blocks, state.forward_index == 0)

    forced = []
    for step in steps_with(lambda s: Decision(torch.zeros_like(s.observation.masked)), schedule=Two()):
        row = next(rows_of(step))
        block = min(row.blocks[j] for j in row.may)
        among = [j for j in row.may if row.blocks[j] == block]
        best = row.positions[max(among, key=row.log_c)]
        if forced:
            assert not step.state.masked[0, forced[-1]]
        forced.append(best)
    assert len(forced) == 6
    assert set(forced[:3]) == {2, 3, 4}


def test_where_everything_is_held_back_an_open_target_is_forced():
    class HoldsBack(Holes):
        """All of it."""

        name: ClassVar[str] = "holds_back"

        def restrict(self, state, observation):
            return torch.zeros_like(observation.masked)

    sampler = Sampler(model(), unmasking="fixed_k", wrappers=[HoldsBack()], stop_at_eos=False)
    result = sampler.generate([[1], [2]], 5)
    assert result.row_forced.tolist() == [5, 5]
    assert result.forced == 10


@pytest.mark.parametrize("patience", [0, 1, 3, 6])
def test_idle_steps_are_spent_by_the_shortfall(patience):
    """A step that nets n commits short of one costs 1 - n."""

    def decide(step):
        if step.state.forward_index == 0:
            return Decision(at(step, 0, 1, 2))
        if step.state.forward_index == 1:
            return Decision(at(step, 3), remask=at(step, 0, 1, 2))  # two short of nothing: costs three
        return Decision(step.observation.eligible)

    done = [step.state.masked[0].sum().item() for step in steps_with(decide, patience=patience)]
    assert done[:2] == [6, 3]
    assert done[2] == (5 if patience >= 3 else 2)


def test_a_finished_row_does_not_spend_idle_steps():
    """One that waits for its batch mates neither counts nor is forced."""

    def predict(tokens, position_ids):
        values = torch.zeros(*tokens.shape, 6)
        values[..., 1] = torch.where(tokens[:, :1] == 2, 9.0, 0.1)
        return values

    from dllm_sampling.testing import ChosenModel

    sampler = Sampler(
        ChosenModel(predict, 6),
        unmasking={"name": "confidence_threshold", "threshold": 0.9},
        schedule={"name": "fixed_blocks", "block_length": 4},
        stop_at_eos=False,
    )
    result = sampler.generate([[2, 2], [3, 3]], 8)
    assert result.row_forwards.tolist() == [2, 8]
    assert result.row_forced.tolist() == [0, 8]


class Unravels(UnmaskingPolicy):
    """Commits all of a row at once, and masks all of it again while it waits for its batch mates."""

    name: ClassVar[str] = "unravels"

    def select(self, state, observation):
        commit = observation.eligible.clone()
        if state.forward_index == 0:
            commit[1:, 1:] = False  # so that the rows take turns in waiting
        waits = ~observation.masked.any(1, keepdim=True)
        return Decision(commit, remask=observation.committed & waits)


def test_a_row_that_waits_cannot_undo_its_text_for_nothing():
    """Two rows that undo each other's block while they wait: no row has idle steps, so it must end."""
    sampler = Sampler(
        model(),
        unmasking=Unravels(),
        schedule={"name": "fixed_blocks", "block_length": 4},
        stop_at_eos=False,
    )
    run = sampler.steps([[1], [2, 1]], 8)
    for taken, _ in enumerate(run, 1):
        assert taken <= 2 * 8, "two rows of eight targets without idle steps"


def test_what_is_committed_counts_as_fresh_only_where_it_was_computed():
    """Stale positions are neither committed ones nor eligible: nothing may be read or done there."""
    stale = 0
    sampler = Sampler(
        model(4), unmasking={"name": "fixed_k", "k": 2}, cache=Patchy(share=0.5), schedule="whole_canvas"
    )
    for step in sampler.steps([[1, 2]], 12):
        seen = step.observation
        assert not (seen.committed & ~seen.fresh).any()
        assert not (seen.eligible & ~seen.fresh).any()
        stale += int((~seen.fresh & ~seen.masked).sum())
    assert stale > 0


def test_partial_refreshes_are_counted_for_the_rows_they_are_of():
    cache = {"name": "commit_refresh", "commits": 4, "policy": {"name": "windowed", "left": 1, "right": 1}}
    sampler = Sampler(
        model(7),
        unmasking={"name": "confidence_threshold", "threshold": 0.5},
        cache=cache,
        schedule={"name": "sliding", "block_length": 6},
        stop_at_eos=False,
    )
    run = sampler.steps(prompts([2, 5, 3]), 16)
    counted, partial = dict.fromkeys(range(3), 0), 0
    for step in run:
        _, flags = plan_of(step)
        partial += any(flags) and not all(flags)
        for row, flag, active in zip(
            step.state.rows, flags, step.observation.masked.any(1).tolist(), strict=True
        ):
            counted[row] += flag and active
    assert partial > 0
    assert run.result.row_refreshes.tolist() == in_call_order({"sizes": [2, 5, 3]}, counted)
