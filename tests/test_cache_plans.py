"""The exact plan of every cache policy, forward by forward, against a slow version a row at a time.

What is computed, what may be seen, whether it is kept, in which rows it is a refresh; and that what is
counted at the end is the sum of what was planned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from dllm_sampling.caches import (
    CommitRefresh,
    Delayed,
    DualCache,
    EntropyRefresh,
    IntervalRefresh,
    NoCache,
    PrefixCache,
    SuffixWindow,
    Trailing,
    WarmUp,
    Windowed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import ConfigurationError, Sampler
from dllm_sampling.state import noise
from tests.slow import (
    SCHEDULES,
    Drifting,
    Holes,
    Some,
    in_call_order,
    model,
    opened,
    rows_of,
    sure,
    texts,
)

few = settings(max_examples=40)


@dataclass
class Seen:
    """What a slow version may look at before a forward: one row."""

    region: list  # columns, in order
    starts: bool
    forward: int  # of the run
    i: int  # forwards of the block before this one
    length: int
    first: int  # first target
    end: int  # behind the last target
    steps: int  # the row's own clock
    works: bool  # an open target is in its region
    open: set  # open targets
    targets: set
    valid: set
    committed_at: list
    # Of the step before, None at first:
    written: set | None
    commits: int
    entropy: float
    memory: dict

    @property
    def all(self):
        return set(range(self.length))


@dataclass
class Plan:
    """What must be planned for the row."""

    columns: set
    refresh: bool = False
    visible: set | None = None
    store: bool = True

    def whole(self, seen):
        """Whether all that is visible of the row is computed."""
        return (seen.valid if self.visible is None else seen.valid & self.visible) <= self.columns


@st.composite
def runs(draw, schedules=SCHEDULES):
    ends = draw(st.sampled_from([0.0, 0.0, 3.0]))
    return {
        "model": model(draw(st.integers(0, 10**6)), 8, draw(st.sampled_from([1.0, 4.0])), ends=ends),
        **draw(texts(7, 14, fill=True)),
        "settings": {
            "schedule": draw(schedules),
            "unmasking": Some(seed=draw(st.integers(0, 999)), share=draw(st.sampled_from([0.1, 0.3, 0.7]))),
            "wrappers": [Holes(share=0.4)] if draw(st.booleans()) else [],
            "stop_at_eos": ends > 0,
        },
    }


def seen_of(step, last, memories):
    """One `Seen` for each row; `last` is what the step before came to, by row."""
    state, region = step.state, step.region
    kept = {name: getattr(state, name).tolist() for name in ("masked", "targets", "valid", "committed_at")}
    for i, row in enumerate(state.rows):
        before = last.get(row)

        def columns(name, i=i):
            return {p for p, x in enumerate(kept[name][i]) if x}

        yield (
            row,
            Seen(
                region=[p for p in region.positions.columns[i].tolist() if p >= 0],
                starts=region.starts_block,
                forward=state.forward_index,
                i=state.block_forwards,
                length=state.length,
                first=state.first_target,
                end=max(columns("targets")) + 1,
                steps=state.row_steps[i].item(),
                works=any(kept["masked"][i][p] for p in region.positions.columns[i].tolist() if p >= 0),
                open=columns("masked"),
                targets=columns("targets"),
                valid=columns("valid"),
                committed_at=kept["committed_at"][i],
                written=None if before is None else before["written"],
                commits=0 if before is None else before["commits"],
                entropy=0.0 if before is None else before["entropy"],
                memory=memories.setdefault(row, {}),
            ),
        )


def outcome_of(state, before):
    """What the last step wrote in each row, from the canvas alone."""
    found = {}
    for i, row in enumerate(state.rows):
        if row not in before:
            continue
        at = state.committed_at[i].tolist()
        written = {p for p, forward in enumerate(at) if forward == state.forward_index - 1}
        entropies = [before[row][p] for p in written]
        found[row] = {"written": written, "commits": len(written), "entropy": max(entropies, default=0.0)}
    return found


def planned(step):
    """The plan of every row, as `Plan`."""
    state, plan = step.state, step.plan
    for i in range(state.batch):
        columns = [p for p in plan.positions.columns[i].tolist() if p >= 0]
        assert len(set(columns)) == len(columns)
        columns = set(columns)
        visible = None if plan.visible is None else {p for p, x in enumerate(plan.visible[i].tolist()) if x}
        valid = {p for p, x in enumerate(state.valid[i].tolist()) if x}
        shown = valid if visible is None else valid & visible
        yield Plan(columns, shown <= columns, visible, plan.store)


def walk(run, cache, expected):
    """Compare every plan with `expected(seen)`; then what was counted with what was planned."""
    steps = opened(run, cache=cache)
    entropies, memories = {}, {}
    width = forwards = refreshes = 0
    row_refreshes = dict.fromkeys(range(len(run["sizes"])), 0)
    row_forwards, row_rows = dict(row_refreshes), dict(row_refreshes)
    for step in steps:
        last = outcome_of(step.state, entropies) if entropies else {}
        active = step.observation.masked.any(1).tolist()
        plans, everywhere = list(planned(step)), []
        assert step.plan.width <= step.state.length
        for (row, seen), plan, works in zip(seen_of(step, last, memories), plans, active, strict=True):
            wanted = expected(seen)
            # Padding is never computed to any effect: it is never visible.
            assert plan.columns & seen.valid == wanted.columns & seen.valid, (seen.forward, row)
            assert plan.refresh == wanted.whole(seen), (seen.forward, row)
            assert plan.store == wanted.store
            visible = seen.all if wanted.visible is None else wanted.visible
            assert (seen.all if plan.visible is None else plan.visible) & seen.valid == visible & seen.valid
            row_refreshes[row] += works and plan.refresh
            everywhere.append((wanted.refresh, plan.refresh))
            row_forwards[row] += works
            row_rows[row] += step.plan.width
        forwards += 1
        refresh = step.plan.is_refresh(step.state.length)
        refreshes += refresh
        assert refresh or not all(meant for meant, _ in everywhere)
        assert all(found for _, found in everywhere) or not refresh
        width += step.plan.width * step.state.batch
        entropies = {row.row: {row.positions[j]: row.entropy(j) for j in row.inside} for row in rows_of(step)}
    result = steps.result
    assert result.row_refreshes.tolist() == in_call_order(run, row_refreshes)
    assert result.row_forwards.tolist() == in_call_order(run, row_forwards)
    assert result.row_positions_computed.tolist() == in_call_order(run, row_rows)
    assert (result.forwards, result.refreshes, result.positions_computed) == (forwards, refreshes, width)


def span(seen, left, right):
    """The region's columns from its first to its last, with some on both sides."""
    start = max(min(seen.region, default=seen.length) - left, 0)
    stop = seen.length if right is None else min(max(seen.region, default=-1) + 1 + right, seen.length)
    return set(range(start, stop))


def full(seen):
    return Plan(seen.all, refresh=True)


def slow_dual(seen):
    return full(seen) if seen.starts else Plan(span(seen, 0, 0))


def slow_prefix(seen):
    return full(seen) if seen.starts else Plan(span(seen, 0, None))


@given(runs())
@few
def test_none(run):
    walk(run, NoCache(), lambda seen: Plan(seen.all, refresh=True, store=False))


@given(runs())
@few
def test_dual(run):
    walk(run, DualCache(), slow_dual)


@given(runs())
@few
def test_prefix(run):
    walk(run, PrefixCache(), slow_prefix)


@given(runs(), st.integers(1, 5), st.booleans())
@few
def test_interval(run, interval, prefix):
    inner = slow_prefix if prefix else slow_dual
    policy = IntervalRefresh(policy=PrefixCache() if prefix else DualCache(), interval=interval)
    walk(run, policy, lambda seen: full(seen) if seen.i % interval == 0 else inner(seen))


@given(runs(), st.integers(1, 6))
@few
def test_delayed(run, interval):
    def expected(seen):
        if seen.starts or seen.i <= 1 or seen.i % interval == 0:
            return full(seen)
        return Plan(seen.open | seen.written)

    walk(run, Delayed(interval=interval), expected)


WRAPPED = {
    "warmup": lambda policy, n: WarmUp(policy=policy, forwards=n),
    "interval": lambda policy, n: IntervalRefresh(policy=policy, interval=n),
    "commits": lambda policy, n: CommitRefresh(policy=policy, commits=n),
}


@st.composite
def refreshes(draw):
    """Refreshes around a cache policy, each at most once, in any order: `[(which, its number), ...]`."""
    chosen = draw(st.lists(st.sampled_from(sorted(WRAPPED)), unique=True))
    return [(which, draw(st.integers(1, 6))) for which in chosen]


def refreshed(inner, around):
    """The slow version of a plan with refreshes around it: any of them refreshes the row."""
    numbers = dict(around)

    def expected(seen):
        memory = seen.memory
        memory["commits"] = memory.get("commits", 0) + seen.commits
        plan = inner(seen)
        every = seen.steps < numbers.get("warmup", 0)
        every = every or ("interval" in numbers and seen.i % numbers["interval"] == 0)
        if every or memory["commits"] >= numbers.get("commits", math.inf):
            plan = full(seen)
        if seen.works and plan.whole(seen):  # nothing of a row that waits is kept: it is still due
            memory["commits"] = 0
        return plan

    return expected


def around_it(policy, around):
    for which, number in around:
        policy = WRAPPED[which](policy, number)
    return policy


@given(runs(), st.integers(0, 5), st.none() | st.integers(0, 5), refreshes())
@settings(max_examples=80)
def test_windowed(run, left, right, around):
    policy = around_it(Windowed(left=left, right=right), around)
    walk_rows(
        run,
        policy,
        refreshed(lambda seen: full(seen) if seen.starts else Plan(span(seen, left, right)), around),
    )


@given(
    runs(), st.integers(0, 5), st.none() | st.integers(0, 5), st.integers(0, 3), st.booleans(), refreshes()
)
@settings(max_examples=120)
def test_trailing(run, left, right, delay, prompt, around):
    def inner(seen):
        start = min(seen.region, default=seen.length)
        before, seen.memory["start"] = seen.memory.get("start", start), start
        if seen.starts:
            return full(seen)
        low = max(min(start - left, before - delay), 0 if prompt else seen.first)
        high = seen.length if right is None else max(seen.region) + 1 + right
        return Plan(set(range(low, min(high, seen.length))))

    policy = around_it(Trailing(left=left, right=right, delay=delay, prompt=prompt), around)
    walk_rows(run, policy, refreshed(inner, around))


def walk_rows(run, cache, expected):
    """As `walk`; a plan in which every row refreshes may be said to be one of the whole batch or of each."""
    steps = opened(run, cache=cache)
    entropies, memories = {}, {}
    counted = dict.fromkeys(range(len(run["sizes"])), 0)
    for step in steps:
        last = outcome_of(step.state, entropies) if entropies else {}
        active = step.observation.masked.any(1).tolist()
        for (row, seen), plan, works in zip(
            seen_of(step, last, memories), planned(step), active, strict=True
        ):
            wanted = expected(seen)
            if not works:
                continue  # nothing of a row that waits is written
            assert plan.columns & seen.valid == wanted.columns & seen.valid, (seen.forward, row)
            assert plan.refresh == wanted.whole(seen), (seen.forward, row)
            assert plan.visible is None
            assert plan.store
            counted[row] += plan.refresh
        entropies = {row.row: {row.positions[j]: row.entropy(j) for j in row.inside} for row in rows_of(step)}
    assert steps.result.row_refreshes.tolist() == in_call_order(run, counted)


@given(runs(), st.sampled_from([0.0, 0.5, 1.5, 99.0]), st.integers(0, 6))
@settings(max_examples=80)
def test_entropy_refresh(run, threshold, recent):
    """The open targets of the region, and the latest commits: which of two of one step is not said."""
    entropies, memories, counted = {}, {}, dict.fromkeys(range(len(run["sizes"])), 0)
    steps = opened(run, cache=EntropyRefresh(threshold=threshold, recent=recent))
    for step in steps:
        last = outcome_of(step.state, entropies) if entropies else {}
        active = step.observation.masked.any(1).tolist()
        for (row, seen), plan, works in zip(
            seen_of(step, last, memories), planned(step), active, strict=True
        ):
            uncertain = seen.written is None or seen.starts
            uncertain = uncertain or sure(seen.entropy, threshold) > threshold
            counted[row] += works and plan.refresh
            if not works:
                continue
            if uncertain:
                assert plan.columns == seen.all
                assert plan.refresh
                continue
            wanted = set(seen.region) & seen.open
            assert wanted <= plan.columns
            more = plan.columns - wanted
            committed = {p for p, at in enumerate(seen.committed_at) if at >= 0}
            assert more <= committed
            assert len(more) == min(recent, len(committed))
            oldest = min((seen.committed_at[p] for p in more), default=seen.forward)
            assert all(seen.committed_at[p] <= oldest for p in committed - more)
        entropies = {row.row: {row.positions[j]: row.entropy(j) for j in row.inside} for row in rows_of(step)}
    assert steps.result.row_refreshes.tolist() == in_call_order(run, counted)


@pytest.mark.parametrize(("threshold", "refreshes"), [(0.0, 8), (99.0, 1)])
def test_entropy_refresh_at_the_ends_of_its_range(threshold, refreshes):
    sampler = Sampler(
        model(2, scale=1.0),
        unmasking={"name": "fixed_k", "k": 2},
        cache=EntropyRefresh(threshold=threshold, recent=3),
        schedule="whole_canvas",
        stop_at_eos=False,
    )
    run = sampler.steps([[1, 2, 3]], 16)
    widths = [len(next(planned(step)).columns) for step in run]
    assert run.result.row_refreshes.tolist() == [run.result.refreshes] == [refreshes]
    if threshold:
        assert widths == [19, *(16 - 2 * n + min(3, 2 * n) for n in range(1, 8))]


INNER = {"none": NoCache(), "dual": DualCache(), "prefix": PrefixCache()}
SLOW: dict[str, Any] = {
    "none": lambda seen: Plan(seen.all, refresh=True, store=False),
    "dual": slow_dual,
    "prefix": slow_prefix,
}


@given(runs(), st.sampled_from(sorted(INNER)), st.integers(0, 8), st.integers(0, 3))
@settings(max_examples=80)
def test_suffix_window(run, inner, window, tail):
    def expected(seen):
        plan = SLOW[inner](seen)
        last = max(seen.region)
        near = {p for p in seen.all if p - last - 1 < window}
        visible = near | {p for p in seen.all if p >= seen.end - tail} | (seen.all - seen.targets)
        return Plan(plan.columns & visible, plan.refresh, visible, plan.store)

    walk_visible(run, SuffixWindow(policy=INNER[inner], window=window, tail=tail), expected)


def walk_visible(run, cache, expected):
    steps = opened(run, cache=cache)
    memories, refreshes = {}, 0
    for step in steps:
        meant = True
        for (row, seen), plan in zip(seen_of(step, {}, memories), planned(step), strict=True):
            wanted = expected(seen)
            if not seen.region:
                continue
            where = (seen.forward, row)
            assert plan.visible & seen.valid == wanted.visible & seen.valid, where
            assert plan.columns & seen.valid == wanted.columns & seen.valid, where
            assert plan.refresh == wanted.whole(seen), where
            assert plan.store == wanted.store
            meant = meant and wanted.refresh
        refreshes += step.plan.is_refresh(step.state.length)
        assert step.plan.is_refresh(step.state.length) or not meant
    assert steps.result.refreshes == refreshes


def test_a_narrow_suffix_computes_no_more_than_it_shows():
    """The width that is counted: prompt, block, window and tail at a refresh, block afterwards."""
    sampler = Sampler(
        model(),
        unmasking={"name": "fixed_k", "k": 2},
        cache=SuffixWindow(policy=DualCache(), window=3, tail=2),
        schedule={"name": "fixed_blocks", "block_length": 4},
        stop_at_eos=False,
    )
    widths = [step.plan.width for step in sampler.steps([[1, 2, 3]], 16)]
    assert widths == [3 + 4 + 3 + 2, 4, 7 + 4 + 3 + 2, 4, 19, 4, 19, 4]


def test_what_is_drawn_of_the_suffix_stays_for_a_block_and_is_nearer_more_often():
    """With `decay` some of the window is left out: another choice for every block, row and seed."""
    kept = torch.zeros(12)
    changes = 0
    for seed in range(30):
        sampler = Sampler(
            model(),
            unmasking={"name": "fixed_k", "k": 2},
            cache=SuffixWindow(policy=NoCache(), window=12, tail=1, decay=3.0, scale=2.0),
            schedule={"name": "fixed_blocks", "block_length": 4},
            stop_at_eos=False,
        )
        before = None
        for step in sampler.steps([[1, 2]], 20, seed=seed):
            visible = step.plan.visible[0]
            stop = step.region.span.stop
            assert visible[:stop].all()
            assert visible[-1]
            assert not visible[stop + 12 : -1].any()
            if before is not None:
                block, shown = before
                if block == stop:
                    assert torch.equal(shown, visible)
                elif stop + 4 < 22:
                    changes += not torch.equal(shown[stop:-1], visible[stop:-1])
            if before is None:
                kept += visible[stop : stop + 12]
            before = (stop, visible)
    assert changes > 5
    # 2 phi(0) = 0.8 at the nearest, 2 phi(3) = 0.009 at the farthest, of 30 draws.
    assert kept[0] >= 15
    assert kept[-1] <= 3
    assert kept[:4].sum() > kept[4:8].sum() > kept[8:].sum()


@given(runs(), st.sampled_from([0.5, 3.0]), st.sampled_from([0.5, 2.0]), st.integers(0, 9), st.integers(0, 2))
@few
def test_what_is_drawn_of_the_suffix_has_its_chance(run, decay, scale, window, tail):
    """At distance d = 0, 1, ... behind the region a mask stays where u < scale phi(decay d / (window - 1))."""
    drawn = {}

    def uniform(row, state, p):
        """The run's noise for this purpose."""
        i = state.rows.index(row)
        at = [state.seeds[i], state.row_steps[i], state.position_ids[i, p]]
        return float(noise.uniform(noise.keys(*at, "cache")))

    cache = SuffixWindow(policy=NoCache(), window=window, tail=tail, decay=decay, scale=scale)
    for step in opened(run, cache=cache):
        for (row, seen), plan in zip(seen_of(step, {}, {}), planned(step), strict=True):
            if seen.starts:
                drawn[row] = [uniform(row, step.state, p) for p in range(seen.length)]
            for p in seen.targets if seen.works else ():
                d = p - max(seen.region) - 1
                x = decay * d / max(window - 1, 1)
                chance = scale * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
                kept = d < 0 or (d < window and sure(drawn[row][p], chance) < chance)
                assert (p in plan.visible) == (kept or p >= seen.end - tail)


@pytest.mark.parametrize("wider", [{}, {"decay": 1.0, "scale": 9.0}])
def test_a_scale_that_keeps_all_is_no_decay(wider):
    seen = []
    for more in ({}, wider):
        cache = SuffixWindow(policy=NoCache(), window=5, tail=1, **more)
        run = Sampler(model(), cache=cache, schedule={"name": "fixed_blocks", "block_length": 4}).steps(
            [[1]], 16
        )
        seen.append([step.plan.visible[0].tolist() for step in run])
    assert seen[0] == seen[1]
    with pytest.raises(ConfigurationError, match="no effect without decay"):
        Sampler(model(), cache={"name": "suffix_window", "policy": "dual", "scale": 3.0})


def test_two_visible_sets_are_both_kept():
    """A window within a window shows what both show."""
    cache = SuffixWindow(policy=SuffixWindow(policy=DualCache(), window=6, tail=0), window=3, tail=2)
    run = Sampler(
        model(), cache=cache, unmasking={"name": "fixed_k", "k": 4},
        schedule={"name": "fixed_blocks", "block_length": 4}, stop_at_eos=False,
    ).steps([[1, 2]], 16)  # fmt: skip
    step = next(run)
    assert [p for p, x in enumerate(step.plan.visible[0].tolist()) if x] == list(range(9))
    assert next(planned(step)).columns == set(range(9))
    assert step.plan.refresh


@pytest.mark.parametrize("cache", [DualCache(), Windowed(left=0, right=0), Trailing(left=0, prompt=False)])
def test_the_window_of_a_region_with_gaps_reaches_its_last_position(cache):
    run = {
        "model": model(),
        "lengths": [5, 3, 4],
        "gen_length": 11,
        "settings": {"schedule": Drifting(width=5), "unmasking": Some(share=0.1), "stop_at_eos": False},
    }
    for step in opened(run, cache=cache):
        for (_, seen), plan in zip(seen_of(step, {}, {}), planned(step), strict=True):
            assert set(seen.region) <= plan.columns


def test_a_row_that_waited_has_all_of_its_warm_up():
    """Its clock stands still meanwhile; a row beside it that is done with it does not end it."""
    run = {
        "model": model(),
        "lengths": [4, 4, 4],
        "gen_length": 12,
        "settings": {
            "schedule": {"name": "fixed_blocks", "block_length": 4},
            "unmasking": Some(seed=1, share=0.4),
            "stop_at_eos": False,
        },
    }
    steps, lengths, refreshes = opened(run, cache=WarmUp(policy=DualCache(), forwards=5)), set(), {}
    for step in steps:
        state, active = step.state, step.observation.masked.any(1).tolist()
        lengths.add(tuple(state.row_steps.tolist()))
        for row, now, plan, works in zip(
            state.rows, state.row_steps.tolist(), planned(step), active, strict=True
        ):
            assert plan.refresh == (now < 5 or step.region.starts_block) or not works
            refreshes[row] = refreshes.get(row, 0) + (works and plan.refresh)
    assert any(len(set(clocks)) > 1 and min(clocks) < 5 <= max(clocks) for clocks in lengths)
    assert steps.result.row_refreshes.tolist() == in_call_order({"sizes": [4] * 3}, refreshes)


def test_a_row_that_is_refreshed_sees_all_that_it_computes():
    """The window of a policy inside is not that of a refresh around it."""
    inner = SuffixWindow(policy=DualCache(), window=1, tail=0)
    run = {
        "model": model(),
        "lengths": [4, 4, 4],
        "gen_length": 16,
        "settings": {
            "schedule": {"name": "sliding", "block_length": 4},
            "unmasking": Some(seed=1, share=0.4),
            "stop_at_eos": False,
        },
    }
    partial = 0
    for step in opened(run, cache=CommitRefresh(policy=inner, commits=3)):
        refreshed = [plan.columns == set(range(step.state.length)) for plan in planned(step)]
        partial += any(refreshed) and not all(refreshed)
        for plan in planned(step):
            assert plan.visible is None or plan.columns <= plan.visible
    assert partial > 2
