"""The progress guard alone: what it lets pass, against a slow version, row by row."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sampling.engine.progress_guard import guarded, most_confident
from dllm_sampling.testing import observe
from dllm_sampling.testing.data import logits


def flags(data, shape):
    row = st.lists(st.booleans(), min_size=shape[1], max_size=shape[1])
    return torch.tensor(data.draw(st.lists(row, min_size=shape[0], max_size=shape[0])))


@st.composite
def situations(draw):
    """An observation of which some positions are open, fresh, eligible or forbidden, and blocks."""
    data = draw(st.data())
    values = draw(logits(width=(1, 7)))
    shape = values.shape[:2]
    _, seen = observe(values, masked=flags(data, shape))
    fresh, forbidden = flags(data, shape), flags(data, shape)
    blocks = torch.tensor(
        draw(
            st.lists(
                st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1]),
                min_size=shape[0],
                max_size=shape[0],
            )
        )
    )
    seen = replace(seen, fresh=fresh, blocks=blocks, eligible=seen.masked & fresh & flags(data, shape))
    return (
        (seen.without("x", forbidden), forbidden) if draw(st.booleans()) else (seen, ~torch.ones_like(fresh))
    )


def best(seen, forbidden, row):
    """The one position that the engine would force, or None."""
    width = seen.masked.shape[1]
    among = [i for i in range(width) if seen.eligible[row, i]]
    among = among or [
        i for i in range(width) if seen.masked[row, i] and seen.fresh[row, i] and not forbidden[row, i]
    ]
    if not among:
        return None
    lowest = min(int(seen.blocks[row, i]) for i in among)
    among = [i for i in among if seen.blocks[row, i] == lowest]
    return max(among, key=lambda i: (float(seen.log_confidence[row, i]), -i))


@given(situations())
def test_the_most_confident_is_eligible_then_merely_open_in_the_lowest_block(drawn):
    seen, forbidden = drawn
    chosen = most_confident(seen)
    for row in range(len(chosen)):
        wanted = best(seen, forbidden, row)
        assert chosen[row].nonzero()[:, 0].tolist() == ([] if wanted is None else [wanted])


@given(situations(), st.data())
def test_a_decision_passes_as_far_as_a_row_can_afford_it(drawn, data):
    seen, forbidden = drawn
    shape = tuple(seen.masked.shape)
    commit = flags(data, shape) & seen.eligible
    remask = flags(data, shape) & seen.committed if data.draw(st.booleans()) else None
    left = data.draw(st.lists(st.integers(0, 3), min_size=shape[0], max_size=shape[0]))
    passed = guarded(seen, commit, remask, torch.tensor(left))
    for row in range(shape[0]):
        commits = int(commit[row].sum())
        cost = max(1 - commits + (0 if remask is None else int(remask[row].sum())), 0)
        if not seen.masked[row].any():
            cost = 0
        affordable = cost <= left[row]
        forced = None if affordable or commits else best(seen, forbidden, row)
        assert passed.forced[row].nonzero()[:, 0].tolist() == ([] if forced is None else [forced])
        assert torch.equal(passed.commit[row], commit[row] | passed.forced[row])
        if remask is not None:
            assert torch.equal(passed.remask[row], remask[row] & affordable)
        assert int(passed.idle_left[row]) == left[row] - (cost if affordable else 0)
        assert bool(passed.stuck[row]) == (not affordable and not commits and forced is None)
    assert (passed.remask is None) == (remask is None)
    assert not (passed.commit & forbidden).any()
