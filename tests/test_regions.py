"""The exact regions of every block schedule, step by step, against a slow version a row at a time."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from dllm_sampling.strategies import AdaBlock, FixedBlocks, MultiBlock, Sliding, WholeCanvas
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import Sampler, UnmaskingPolicy
from tests.slow import Holes, model, prompts, ranked, rows_of, scrambled, sure

few = settings(max_examples=40)


class Some(UnmaskingPolicy):
    """Commits a changing part of what it may: each row at a pace of its own."""

    name: ClassVar[str] = "some"
    seed: int = 0
    share: float = 0.4

    def select(self, state, observation):
        drawn = [
            [scrambled(self.seed, state.rows[i], p, state.forward_index) < self.share for p in row]
            for i, row in enumerate(observation.positions.tolist())
        ]
        return torch.tensor(drawn)


@st.composite
def runs(draw):
    ends = draw(st.sampled_from([0.0, 0.0, 3.0]))
    return {
        "model": model(draw(st.integers(0, 10**6)), 8, 3.0, ends=ends),
        "lengths": draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        "gen": draw(st.integers(1, 16)),
        "settings": {
            "unmasking": Some(seed=draw(st.integers(0, 999)), share=draw(st.sampled_from([0.1, 0.4, 0.8]))),
            "wrappers": [Holes(share=0.4)] if draw(st.booleans()) else [],
            "stop_at_eos": ends > 0,
        },
    }


def steps_of(run, schedule):
    sampler = Sampler(run["model"], schedule=schedule, **run["settings"])
    for step in sampler.steps(prompts(run["lengths"]), run["gen"]):
        yield step, max(run["lengths"]), max(run["lengths"]) + run["gen"]


def leftmost(state, i, end):
    """The leftmost open target of a row that no committed end of sequence precedes."""
    ends = state.facts.eos_token_ids if state.stop_at_eos else ()
    for p in range(end):
        if state.targets[i, p]:
            if state.masked[i, p]:
                return p
            if int(state.tokens[i, p]) in ends:
                break
    return None


def check(step, wanted, blocks, starts):
    """The region is exactly `wanted`, a list of columns a row."""
    region = step.region
    found = [[p for p in row if p >= 0] for row in region.positions.tolist()]
    assert found == wanted
    for row, kept, given_ in zip(region.blocks.tolist(), region.positions.tolist(), blocks, strict=True):
        assert [b for b, p in zip(row, kept, strict=True) if p >= 0] == given_
    assert bool(region.starts_block) == starts
    if region.span is not None:
        span = list(range(region.span.start, region.span.stop))
        assert all(row == span for row in region.positions.tolist())
    # No wider than the widest row.
    assert region.positions.shape[1] == max(len(row) for row in wanted)


@given(runs(), st.integers(1, 9))
@few
def test_fixed_blocks(run, length):
    last = None
    for step, first, end in steps_of(run, FixedBlocks(block_length=length)):
        state = step.state
        counts = [min(length, end - s) for s in range(first, end, length)]
        assert state.targets_in_block.tolist() == [counts] * state.batch
        block = min((leftmost(state, i, end) - first) // length for i in range(state.batch))
        start = first + block * length
        columns = list(range(start, min(start + length, end)))
        check(step, [columns] * state.batch, [[block] * len(columns)] * state.batch, block != last)
        assert step.region.span is not None
        last = block


@given(runs())
@few
def test_whole_canvas(run):
    begun = True
    for step, first, end in steps_of(run, WholeCanvas()):
        columns, batch = list(range(first, end)), step.state.batch
        check(step, [columns] * batch, [[0] * len(columns)] * batch, begun)
        assert step.state.targets_in_block.tolist() == [[end - first]] * batch
        assert step.region.span is not None
        begun = False


@given(runs(), st.integers(1, 7), st.none() | st.integers(1, 9))
@few
def test_sliding(run, length, longest):
    begun = True
    for step, first, end in steps_of(run, Sliding(block_length=length, longest=longest)):
        state, wanted = step.state, []
        for i in range(state.batch):
            commits = sum(not state.masked[i, p] for p in range(first, end))
            start = leftmost(state, i, end)
            stop = min(first + length + commits, end)
            stop = stop if longest is None else min(stop, start + longest)
            wanted.append(list(range(start, stop)))
        check(step, wanted, [[0] * len(row) for row in wanted], begun)
        assert state.targets_in_block is None
        begun = False


@given(runs(), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]))
@few
def test_multi_block(run, length, add):
    begun, last = True, {}
    for step, first, end in steps_of(run, MultiBlock(block_length=length, add=add)):
        state, wanted, blocks = step.state, [], []
        total = -(-(end - first) // length)
        for i, row in enumerate(state.rows):
            if begun:
                last[row] = 0
            else:
                inside = range(first + last[row] * length, min(first + (last[row] + 1) * length, end))
                done = sum(not state.masked[i, p] for p in inside)
                if last[row] + 1 < total and done >= add * len(inside):
                    last[row] += 1
            stop = min(first + (last[row] + 1) * length, end)
            columns = list(range(leftmost(state, i, end), stop))
            wanted.append(columns)
            blocks.append([(p - first) // length for p in columns])
        check(step, wanted, blocks, begun)
        begun = False


def test_the_last_block_of_several_is_not_followed_by_another():
    """Opened at once and one a forward: as many blocks as there are, the last one shorter."""
    sampler = Sampler(
        model(), unmasking=Some(share=0.0), schedule=MultiBlock(block_length=4, add=0.0), stop_at_eos=False
    )
    stops = [int(step.region.positions.max()) + 1 for step in sampler.steps([[1, 2]], 10)]
    assert stops == [6, 10, 12, *[12] * 7]


@given(
    runs(),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3, 0.6]),
    st.sampled_from([0.1, 0.3, 0.6, 1.0]),
    st.sets(st.integers(0, 5), min_size=1, max_size=3),
)
@few
def test_adablock(run, length, threshold, share, delimiters):
    schedule = AdaBlock(
        block_length=length, threshold=threshold, share=share, delimiters=tuple(sorted(delimiters))
    )
    run["settings"]["wrappers"] = []  # what else is held back is no delimiter, which is not seen here
    bounds, block = {}, -1
    for step, first, end in steps_of(run, schedule):
        state = step.state
        window = int(share * (end - first))
        begins = [leftmost(state, i, end) for i in range(state.batch)]
        starts = not bounds or all(
            (end if at is None else at) >= bounds[row][1] for row, at in zip(state.rows, begins, strict=True)
        )
        if starts:
            block += 1
            bounds = {
                row: (at, min(at + max(window, length), end))
                for row, at in zip(state.rows, begins, strict=True)
            }
        wanted = [list(range(*bounds[row])) for row in state.rows]
        check(step, wanted, [[block] * len(row) for row in wanted], starts)
        if not starts:
            continue
        for row in rows_of(step):
            start = bounds[row.row][0]
            among = [
                j for j in row.inside
                if row.masked[j] and row.fresh[j] and row.positions[j] < start + window and row.token(j) in delimiters
            ]  # fmt: skip
            best = ranked(among, row.log_c)[:1]
            stop = start + length
            if best and sure(row.c(best[0]), threshold) >= threshold:
                stop = row.positions[best[0]] + 1
            bounds[row.row] = (start, min(stop, end))
            offered = {row.positions[j] for j in row.may}
            assert offered == {p for p in range(start, bounds[row.row][1]) if row.canvas[p]}


CANVASES = [
    [[1, 8, 2, 8, 8, 3, 8]],
    [[8, 1, 1, 1, 1, 1, 8, 8]],
    [[1, 8, 8, 3, 3, 3, 8], [2, 2, 8, 1, 8, 1, 1]],
    [[8, 8, 8], [1, 2, 8, 3, 3, 3, 3, 3, 8]],
]


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_fixed_blocks_of_canvases_to_fill_pass_over_what_was_given(canvas, length):
    """Counted from the first target, of whatever is open in some row; nothing without targets is offered."""
    mask, seen = 8, []

    class Notes(FixedBlocks):
        """Notes the regions that it plans."""

        name: ClassVar[str] = "notes"

        def plan_region(self, state):
            region = super().plan_region(state)
            seen.append((region.span, int(region.blocks[0, 0]), state.targets_in_block.tolist()))
            return region

    sampler = Sampler(
        model(vocabulary=9), unmasking="fixed_k", schedule=Notes(block_length=length), batch_size=4
    )
    sampler.infill(canvas)
    before = [row.index(mask) for row in canvas]
    targets = [
        {p + max(before) - start for p, token in enumerate(row) if token == mask}
        for row, start in zip(canvas, before, strict=True)
    ]
    first, end = min(min(t) for t in targets), max(max(t) for t in targets) + 1
    wanted = []
    for b, start in enumerate(range(first, end, length)):
        stop = min(start + length, end)
        most = max(len(t & set(range(start, stop))) for t in targets)
        wanted += [(slice(start, stop), b)] * most
    assert [s[:2] for s in seen] == wanted
    longest = sorted(range(len(canvas)), key=lambda i: (-len(canvas[i]), i))
    counts = [
        [len(targets[i] & set(range(s, min(s + length, end)))) for s in range(first, end, length)]
        for i in longest
    ]
    assert seen[0][2] == counts
