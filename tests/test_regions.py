"""The exact regions of every block schedule, step by step, against a slow version a row at a time."""

from __future__ import annotations

import pytest
import torch
from dllm_sampling.strategies import AdaBlock, FixedBlocks, MultiBlock, Sliding, WholeCanvas
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import Sampler
from dllm_sampling.testing import ChosenModel
from tests.slow import Holes, Some, model, opened, ranked, rows_of, sure, texts

few = settings(max_examples=60)


@st.composite
def runs(draw):
    ends = draw(st.sampled_from([0.0, 0.0, 3.0]))
    return {
        "model": model(draw(st.integers(0, 10**6)), 8, 3.0, ends=ends),
        **draw(texts(7, 16, fill=True)),
        "settings": {
            "unmasking": Some(seed=draw(st.integers(0, 999)), share=draw(st.sampled_from([0.1, 0.4, 0.8]))),
            "wrappers": [Holes(share=0.4)] if draw(st.booleans()) else [],
            "stop_at_eos": ends > 0,
        },
    }


def steps_of(run, schedule):
    """Each step, and the columns of every row's targets."""
    for step in opened(run, schedule=schedule):
        yield step, [[p for p, x in enumerate(row) if x] for row in step.state.targets.tolist()]


def leftmost(state, i, targets):
    """The leftmost open target of a row that no committed end of sequence precedes."""
    ends = state.facts.eos_token_ids if state.stop_at_eos else ()
    for p in targets[i]:
        if state.masked[i, p]:
            return p
        if int(state.tokens[i, p]) in ends:
            break
    return None


def check(step, wanted, blocks, starts):
    """The region is exactly `wanted`, a list of columns a row."""
    region = step.region
    found = [[p for p in row if p >= 0] for row in region.positions.columns.tolist()]
    assert found == wanted
    for row, kept, given_ in zip(
        region.blocks.tolist(), region.positions.columns.tolist(), blocks, strict=True
    ):
        assert [b for b, p in zip(row, kept, strict=True) if p >= 0] == given_
    assert bool(region.starts_block) == starts
    if region.span is not None:
        span = list(range(region.span.start, region.span.stop))
        assert all(row == span for row in region.positions.columns.tolist())


@given(runs(), st.integers(1, 9))
@few
def test_fixed_blocks(run, length):
    last = None
    for step, targets in steps_of(run, FixedBlocks(block_length=length)):
        state = step.state
        first = min(t[0] for t in targets)
        for counts, columns in zip(state.targets_in_block.tolist(), targets, strict=True):
            for b, count in enumerate(counts):
                start = first + b * length
                assert count == len(set(columns) & set(range(start, start + length)))
            assert sum(counts) == len(columns)
        block = min((leftmost(state, i, targets) - first) // length for i in range(state.batch))
        start = first + block * length
        # Of each row to its own last target.
        columns = [list(range(start, min(start + length, t[-1] + 1))) for t in targets]
        check(step, columns, [[block] * len(row) for row in columns], block != last)
        assert (step.region.span is not None) == (len({len(row) for row in columns}) == 1)
        last = block


@given(runs())
@few
def test_whole_canvas(run):
    begun = True
    for step, targets in steps_of(run, WholeCanvas()):
        first = min(t[0] for t in targets)
        columns = [list(range(first, t[-1] + 1)) for t in targets]
        check(step, columns, [[0] * len(row) for row in columns], begun)
        assert step.state.targets_in_block.tolist() == [[len(t)] for t in targets]
        begun = False


@given(runs(), st.integers(1, 7), st.none() | st.integers(1, 9))
@few
def test_sliding(run, length, longest):
    begun = True
    for step, targets in steps_of(run, Sliding(block_length=length, longest=longest)):
        state, wanted = step.state, []
        for i, columns in enumerate(targets):
            commits = sum(not state.masked[i, p] for p in columns)
            start = leftmost(state, i, targets)
            stop = columns[min(length + commits, len(columns)) - 1] + 1
            stop = stop if longest is None else min(stop, start + longest)
            wanted.append(list(range(start, stop)))
        check(step, wanted, [[0] * len(row) for row in wanted], begun)
        assert state.targets_in_block is None
        begun = False


@given(runs(), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]))
@few
def test_multi_block(run, length, add):
    begun, last, first = True, {}, None
    for step, targets in steps_of(run, MultiBlock(block_length=length, add=add)):
        state, wanted, blocks = step.state, [], []
        first = min(t[0] for t in targets) if begun else first
        for i, (row, columns) in enumerate(zip(state.rows, targets, strict=True)):
            final = (columns[-1] - first) // length
            if begun:
                last[row] = 0
            else:
                inside = [p for p in columns if (p - first) // length == last[row]]
                done = sum(not state.masked[i, p] for p in inside)
                last[row] += done >= add * len(inside)
                leftmost_open = min(p for p in columns if state.masked[i, p])
                last[row] = min(max(last[row], (leftmost_open - first) // length), final)
            stop = min(first + (last[row] + 1) * length, columns[-1] + 1)
            region = list(range(leftmost(state, i, targets), stop))
            wanted.append(region)
            blocks.append([(p - first) // length for p in region])
        check(step, wanted, blocks, begun)
        begun = False


def test_the_last_block_of_several_is_not_followed_by_another():
    """Opened at once and one a forward: as many blocks as there are, the last one shorter."""
    sampler = Sampler(
        model(), unmasking=Some(share=0.0), schedule=MultiBlock(block_length=4, add=0.0), stop_at_eos=False
    )
    stops = [int(step.region.positions.end()) for step in sampler.steps([[1, 2]], 10)]
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
    bounds, block, first = {}, -1, None
    for step, targets in steps_of(run, schedule):
        state = step.state
        first = min(t[0] for t in targets) if first is None else first
        ends = {row: t[-1] + 1 for row, t in zip(state.rows, targets, strict=True)}
        begins = {row: leftmost(state, i, targets) for i, row in enumerate(state.rows)}
        starts = not bounds or all(begins[row] >= bounds[row][1] for row in state.rows)
        windows = {row: int(share * (ends[row] - first)) for row in state.rows}
        if starts:
            block += 1
            bounds = {
                row: (begins[row], min(begins[row] + max(windows[row], length), ends[row]))
                for row in state.rows
            }
        wanted = [list(range(*bounds[row])) for row in state.rows]
        check(step, wanted, [[block] * len(row) for row in wanted], starts)
        if not starts:
            continue
        for row in rows_of(step):
            start = bounds[row.row][0]
            among = [
                j for j in row.inside
                if row.masked[j] and row.fresh[j] and row.positions[j] < start + windows[row.row] and row.token(j) in delimiters
            ]  # fmt: skip
            best = ranked(among, row.log_c)[:1]
            stop = start + length
            if best and sure(row.c(best[0]), threshold) >= threshold:
                stop = row.positions[best[0]] + 1
            bounds[row.row] = (start, min(stop, ends[row.row]))
            offered = {row.positions[j] for j in row.may}
            assert offered == {p for p in range(start, bounds[row.row][1]) if row.canvas.get(p)}


@pytest.mark.parametrize(
    ("threshold", "likely", "end"),
    [
        (0.5, [0.0, 0.0], 3),  # a probability of exactly one half is enough
        (0.5001, [0.0, 0.0], 5),
        (0.0, [-99.0, 0.0], 5),  # no delimiter: nothing is surer than nothing
    ],
)
def test_adablock_at_the_bound_itself(threshold, likely, end):
    """Token 0 ends a sentence; it is the candidate of the second target or of none."""

    def predict(tokens, position_ids):
        values = torch.full((*tokens.shape, 5), -torch.inf)
        values[..., 1] = 0.0
        values[position_ids == 2] = torch.tensor([*likely, *[-torch.inf] * 3])
        return values

    schedule = AdaBlock(block_length=4, threshold=threshold, share=1.0, delimiters=(0,))
    step = next(Sampler(ChosenModel(predict, 5), schedule=schedule).steps([[1]], 8))
    assert step.observation.eligible[0].nonzero()[:, 0].tolist() == list(range(end - 1))
