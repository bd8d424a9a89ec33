"""Positions: every operation against lists of columns, as a slice and as each row's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sampling import ForwardPlan, Positions, Region
from dllm_sampling.testing import observe

LENGTH = 9


def a_state(batch):
    state, _ = observe(torch.zeros(batch, LENGTH - 1, 5))
    return state


@st.composite
def positions(draw):
    """Positions of a batch, and the columns of each row in order, padding left out."""
    batch = draw(st.integers(1, 3))
    state = a_state(batch)
    if draw(st.booleans()):
        start = draw(st.integers(0, LENGTH - 1))
        stop = draw(st.integers(start + 1, LENGTH))
        return state, Positions.between(state, start, stop), [list(range(start, stop))] * batch
    width = draw(st.integers(1, LENGTH))
    rows = [draw(st.permutations(range(LENGTH)))[:width] for _ in range(batch)]
    rows = [[p if draw(st.integers(0, 3)) else -1 for p in row] for row in rows]
    return state, Positions(torch.tensor(rows)), [[p for p in row if p >= 0] for row in rows]


def listed(found):
    return [[p for p in row if p >= 0] for row in found.columns.tolist()]


@given(positions())
def test_reading(drawn):
    _, at, rows = drawn
    batch = len(rows)
    values = torch.arange(batch * LENGTH).view(batch, LENGTH)
    gathered = at.gather(values, fill=-7)
    for i, columns in enumerate(at.columns.tolist()):
        assert gathered[i].tolist() == [i * LENGTH + p if p >= 0 else -7 for p in columns]
    gathered.fill_(0)
    assert values[-1, -1] == batch * LENGTH - 1  # a copy
    assert at.inside.sum(1).tolist() == [len(row) for row in rows]
    mask = at.mask(LENGTH)
    assert [set(row.nonzero()[:, 0].tolist()) for row in mask] == [set(row) for row in rows]
    assert at.first(LENGTH)[:, 0].tolist() == [min(row, default=LENGTH) for row in rows]
    assert at.end()[:, 0].tolist() == [max(row, default=-1) + 1 for row in rows]
    assert at.covers(LENGTH) == (at.span == slice(0, LENGTH))
    wanted = torch.arange(-1, LENGTH).expand(batch, -1)
    found = at.find(wanted, LENGTH)
    for i, columns in enumerate(at.columns.tolist()):
        assert found[i].tolist() == [columns.index(p) if p in rows[i] else -1 for p in range(-1, LENGTH)]


@given(positions(), st.data())
def test_writing(drawn, data):
    _, at, rows = drawn
    batch = len(rows)
    where = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=at.width, max_size=at.width), min_size=batch, max_size=batch
            )
        )
    )
    values = torch.arange(batch * at.width).view(batch, at.width) + 100
    into = torch.zeros(batch, LENGTH, dtype=torch.long)
    for given_ in (values, 5):
        put = at.put(into, given_, where)
        assert not into.any()
        for i, columns in enumerate(at.columns.tolist()):
            wanted = [0] * LENGTH
            for j, p in enumerate(columns):
                if p >= 0 and where[i, j]:
                    wanted[p] = int(values[i, j]) if given_ is values else 5
            assert put[i].tolist() == wanted


@given(positions(), st.data())
def test_other_positions(drawn, data):
    _, at, rows = drawn
    batch = len(rows)
    seen = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=batch, max_size=batch
            )
        )
    )
    assert listed(at.among(seen)) == [[p for p in row if seen[i, p]] for i, row in enumerate(rows)]
    ends = data.draw(st.lists(st.integers(1, LENGTH), min_size=batch, max_size=batch))
    before = at.before(ends, torch.tensor(ends))
    assert listed(before) == [[p for p in row if p < end] for row, end in zip(rows, ends, strict=True)]
    start = data.draw(st.integers(0, at.width - 1))
    assert torch.equal(at.from_place(start).columns, at.columns[:, start:])
    if at.span is not None:
        assert at.from_place(start).span == slice(at.span.start + start, at.span.stop)
    more = torch.full((batch, 1), -1)
    assert listed(at.and_more(more)) == rows
    assert torch.equal(at.repeated(2).columns, at.columns.repeat(2, 1))
    assert Positions.of(at.mask(LENGTH), LENGTH).columns.tolist() == [
        sorted(row) + [-1] * (LENGTH - len(row)) for row in rows
    ]


@given(positions(), st.data())
def test_what_is_not_visible_is_never_computed_however_a_plan_was_made(drawn, data):
    state, at, _ = drawn
    seen = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
                min_size=state.batch,
                max_size=state.batch,
            )
        )
    )
    for plan in (
        ForwardPlan(at, seen),
        ForwardPlan(at.columns, seen),
        ForwardPlan.between(state, 0, LENGTH, visible=seen),
    ):
        assert not (plan.within_sight().mask(state) & ~seen).any()
        assert torch.equal(plan.within_sight().mask(state), plan.mask(state) & seen)


def test_a_tensor_is_taken_for_positions():
    state = a_state(2)
    columns = torch.tensor([[1, 2], [3, -1]])
    assert listed(Region(columns, torch.zeros_like(columns)).positions) == [[1, 2], [3]]
    assert listed(ForwardPlan(columns).positions) == [[1, 2], [3]]
    assert Region.between(state, 2, 5).from_place(1).span == slice(3, 5)


def test_a_region_ends_with_each_rows_own_targets():
    state = a_state(2)
    region = Region.between(state, 2, 6)
    assert region.clipped(state) is region
    state.lists.ends = [4, 4]
    state.tensors.end_of_targets = torch.tensor([4, 4])
    assert region.clipped(state).span == slice(2, 4)
    assert region.clipped(state).blocks.shape == (2, 2)
    state.lists.ends = [4, 9]
    state.tensors.end_of_targets = torch.tensor([4, 9])
    clipped = region.clipped(state)
    assert clipped.span is None
    assert listed(clipped.positions) == [[2, 3], [2, 3, 4, 5]]


def test_the_last_column_is_nobodys():
    into = torch.zeros(2, LENGTH + 1)
    at = Positions(torch.tensor([[-1, 4], [-1, -1]]))
    at.write(into, 1.0, torch.ones(2, 2, dtype=torch.bool))
    assert into[:, :LENGTH].nonzero().tolist() == [[0, 4]]
    with pytest.raises(AttributeError):
        at.columns = into
