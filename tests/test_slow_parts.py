"""The small parts under the engine against slow versions: ranking, noise, filters, the KV buffer."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dllm_sampling import ForwardPlan, Positions, Region, in_order, largest, log_of, or_the_best, top_k
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.state import confidence, noise
from dllm_sampling.testing import observe
from dllm_sampling.testing.data import logits

# Ranking --------------------------------------------------------------------------------------------

SCORES = st.lists(st.sampled_from([-math.inf, -3.0, -1.0, -1.0, 0.0, 2.5]), min_size=1, max_size=8)


@st.composite
def scored(draw):
    first = draw(SCORES)
    second = draw(st.permutations(first))
    eligible = [draw(st.lists(st.booleans(), min_size=len(first), max_size=len(first))) for _ in range(2)]
    return torch.tensor([first, second]), torch.tensor(eligible)


def best(scores, eligible):
    """Eligible places from the best score down, equal ones from the left."""
    return sorted((i for i, x in enumerate(eligible) if x), key=lambda i: (-scores[i], i))


@given(scored(), st.integers(0, 9))
def test_ranking_takes_the_best_eligible_from_the_left(data, k):
    scores, eligible = data
    ordered, rank = in_order(scores, eligible)
    taken = top_k(scores, eligible, k)
    each = top_k(scores, eligible, torch.tensor([k, 1]))
    for row in range(2):
        wanted = best(scores[row].tolist(), eligible[row].tolist())
        assert [int(rank[row, i]) for i in wanted] == list(range(len(wanted)))
        assert sorted(rank[row].tolist()) == list(range(scores.shape[1]))
        assert ordered[row, : len(wanted)].isfinite().all()
        assert (ordered[row, len(wanted) :] == -math.inf).all()
        finite = [scores[row, i] for i in wanted if scores[row, i] > -math.inf]
        assert ordered[row, : len(finite)].tolist() == [float(x) for x in finite]
        assert set(taken[row].nonzero()[:, 0].tolist()) == set(wanted[:k])
        assert set(each[row].nonzero()[:, 0].tolist()) == set(wanted[: [k, 1][row]])


@given(scored(), st.data())
def test_or_the_best_is_the_choice_or_one(data, more):
    scores, eligible = data
    chosen = torch.tensor(
        [more.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in [scores.shape[1]] * 2]
    )
    got = or_the_best(chosen, scores, eligible)
    for row in range(2):
        wanted = {i for i in range(scores.shape[1]) if chosen[row, i] and eligible[row, i]}
        wanted = wanted or set(best(scores[row].tolist(), eligible[row].tolist())[:1])
        assert set(got[row].nonzero()[:, 0].tolist()) == wanted


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_largest_is_the_last_that_passes(passes):
    found = largest(torch.tensor(passes))
    assert found.shape == (len(passes), 1)
    assert found[:, 0].tolist() == [max((n for n, x in enumerate(row, 1) if x), default=0) for row in passes]


def test_the_logarithm_of_nothing_is_below_all():
    assert log_of(0.0) == -math.inf
    assert log_of(0.25) == math.log(0.25)
    assert log_of(1.0) == 0.0


# Noise ----------------------------------------------------------------------------------------------

WORD = 2**64


def splitmix(x):
    """The finaliser of SplitMix64, in whole numbers."""
    x %= WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


GOLDEN = 0x9E3779B97F4A7C15


def signed(x):
    x %= WORD
    return x - WORD if x >= WORD // 2 else x


def test_the_finaliser_is_the_published_one():
    """The first outputs of SplitMix64 from seed 0."""
    assert [splitmix(GOLDEN * n) for n in (1, 2, 3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip
    drawn = noise.mix(torch.tensor([signed(GOLDEN * n) for n in (1, 2, 3)]))
    assert drawn.tolist() == [signed(splitmix(GOLDEN * n)) for n in (1, 2, 3)]


@given(
    st.integers(-(2**65), 2**65),
    st.integers(0, 10**6),
    st.integers(0, 10**4),
    st.integers(0, 10**4),
    st.sampled_from(["tokens", "cache", "unmasking", "unmasking.policies[1]", "x"]),
)
@example(2**63, 0, 0, 0, "tokens")
@example(2**64 + 5, 1, 0, 0, "unmasking")
@example(-(2**63) - 1, 0, 1, 0, "cache")
def test_noise_is_its_formula(seed, row, step, position, purpose):
    (first,) = noise.row_seeds(seed, torch.tensor([row])).tolist()
    assert first == signed(splitmix(splitmix(row * GOLDEN + seed) + GOLDEN))
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big")
    key = splitmix(splitmix(splitmix(first + salt) + step * GOLDEN) + position * GOLDEN)
    given_ = [torch.tensor([x]) for x in (first, step, position)]
    assert noise.keys(*given_, purpose).tolist() == [signed(key)]
    uniform = ((splitmix(key + GOLDEN) >> 12) + 0.5) / 2**52
    assert noise.uniform(torch.tensor([signed(key)])).tolist() == [uniform]
    drawn = noise.gumbel(torch.tensor([signed(key)]), 3)[0].tolist()
    for token, value in enumerate(drawn, 1):
        u = ((splitmix(key + token * GOLDEN + GOLDEN) >> 12) + 0.5) / 2**52
        assert value == pytest.approx(-math.log(-math.log(u)), rel=1e-12)


def test_noise_follows_the_rows_own_text_and_clock():
    state, _ = observe(torch.zeros(2, 6, 5), seed=4)
    positions = torch.tensor([[1, 3, 5], [2, 2, 6]])
    keys = state.noise_keys(Positions(positions), "x")
    for i in range(2):
        for j, p in enumerate(positions[i].tolist()):
            at = [torch.tensor(x) for x in (int(state.seeds[i]), 0, int(state.position_ids[i, p]))]
            assert int(keys[i, j]) == int(noise.keys(*at, "x"))
    state.tensors.steps = state.tensors.steps + 1
    assert not (state.noise_keys(Positions(positions), "x") == keys).any()


# Scores ---------------------------------------------------------------------------------------------


@given(
    logits(batch=(1, 1), width=(1, 4), vocabulary=(2, 8), scale=(0.1, 6.0)),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([1.0, 0.95, 0.6, 0.2, 0.01]),
    st.none() | st.integers(1, 9),
)
def test_filters_keep_the_nucleus_then_the_k_best(values, temperature, top_p, top_k):
    got = confidence.filtered(values.clone(), temperature, top_p, top_k)
    scaled = values / temperature if temperature else values
    for row, found in zip(scaled[0], got[0], strict=True):
        kept = set(range(len(row)))
        if top_p < 1:
            p = row.double().softmax(-1).tolist()
            kept, before = set(), 0.0
            for v in sorted(range(len(p)), key=lambda v: (-float(row[v]), v)):
                if abs(before - top_p) < 1e-5:
                    return
                if before <= top_p:
                    kept.add(v)
                before += p[v]
        if top_k is not None:
            left = sorted((float(row[v]) for v in kept), reverse=True)
            least = left[min(top_k, len(left)) - 1] if top_k <= len(row) else -math.inf
            kept = {v for v in kept if float(row[v]) >= least}
        assert {v for v, x in enumerate(found.tolist()) if x > -math.inf} == kept
        assert all(float(found[v]) == float(row[v]) for v in kept)


def test_banned_tokens_that_lead_count_in_the_softmax_alone():
    values = torch.tensor([[2.0, 5.0, 1.0, 0.5], [3.0, -2.0, 3.0, 0.0], [0.0, 900.0, 0.0, -900.0]])
    banned = torch.tensor([1])
    best_ = confidence.best_of(values, banned)
    assert best_.tolist() == [0, 0, 0]
    found = confidence.log_confidence_of_best(values, best_, banned)
    exact = values.double().log_softmax(-1)[:, 0]
    assert torch.allclose(found.double(), exact, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 255, 256, 257, 300, 384, 385])
def test_the_place_of_the_maximum_wherever_it_is(size):
    for place in {0, 1, size // 2, max(size - 129, 0), max(size - 128, 0), max(size - 2, 0), size - 1}:
        values = torch.zeros(2, size)
        values[0, min(place, size - 1)] = 1.0
        values[1, min(place, size - 1) :] = 1.0  # a tie from there on
        assert confidence.argmax(values).tolist() == [min(place, size - 1)] * 2


# Plans ----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=2, max_size=2), st.integers(0, 2))
def test_a_plan_of_a_mask_holds_its_positions_in_order(rows, more):
    state, _ = observe(torch.zeros(2, 6, 5))
    mask = torch.tensor(rows)
    width = min(max(sum(row) for row in rows) + more, 7)
    plan = ForwardPlan.of(mask, width)
    assert plan.width == width
    for row, positions in zip(rows, plan.positions.columns.tolist(), strict=True):
        wanted = [p for p, x in enumerate(row) if x]
        assert positions == wanted + [-1] * (width - len(wanted))
    assert torch.equal(plan.mask(state), mask)
    assert (plan.visible, plan.store, plan.refresh) == (None, True, False)
    assert not plan.is_refresh(7)
    assert ForwardPlan.of(mask, width, refresh=True).is_refresh(7)
    assert not ForwardPlan.of(mask, width, refresh=torch.ones(2, dtype=torch.bool)).is_refresh(7)


@given(
    st.integers(0, 5), st.none() | st.integers(0, 5), st.integers(1, 6), st.integers(0, 5), st.integers(1, 4)
)
def test_a_window_is_the_region_with_its_neighbours(left, right, start, gap, width):
    """As a span, and row by row with padding."""
    state, _ = observe(torch.zeros(2, 9, 5))
    stop = min(start + width, 10)

    def around(first, last):
        return set(range(max(first - left, 0), 10 if right is None else min(last + 1 + right, 10)))

    plan = ForwardPlan.window(state, Region.between(state, start, stop), left, right)
    span = plan.positions.span
    assert set(range(span.start, span.stop)) == around(start, stop - 1)
    second = [min(start + gap, 9)]
    columns = list(range(start, stop))
    second += [-1] * (len(columns) - 1)
    positions = torch.tensor([columns, second])
    plan = ForwardPlan.window(state, Region(positions, torch.zeros_like(positions)), left, right)
    mask = plan.mask(state)
    assert set(mask[0].nonzero()[:, 0].tolist()) == around(start, stop - 1)
    assert set(mask[1].nonzero()[:, 0].tolist()) == around(second[0], second[0])
    assert plan.width <= 10


def test_a_full_plan_is_a_refresh_and_says_what_it_keeps():
    state, _ = observe(torch.zeros(2, 4, 5))
    plan = ForwardPlan.full(state)
    found = (plan.positions.span, plan.visible, plan.store, plan.refresh)
    assert found == (slice(0, 5), None, True, True)
    assert plan.is_refresh(5)
    assert plan.mask(state).all()
    assert not ForwardPlan.full(state, store=False).store
    assert ForwardPlan.between(state, 0, 5).is_refresh(5)
    assert not ForwardPlan.between(state, 1, 5).is_refresh(5)
    assert ForwardPlan.between(state, 1, 4).mask(state).long().sum(0).tolist() == [0, 2, 2, 2, 0]


# The KV buffer --------------------------------------------------------------------------------------


@st.composite
def writes(draw, batch, length):
    """Where a forward writes, what rows, how much is seen."""
    if draw(st.booleans()):
        start = draw(st.integers(0, length - 1))
        positions = slice(start, draw(st.integers(start + 1, length)))
    else:
        width = draw(st.integers(1, length))
        rows = [draw(st.permutations(range(length)))[:width] for _ in range(batch)]
        positions = torch.tensor([[p if draw(st.integers(0, 3)) else -1 for p in row] for row in rows])
    rows = draw(st.none() | st.lists(st.booleans(), min_size=batch, max_size=batch))
    return positions, None if rows is None else torch.tensor(rows), draw(st.none() | st.integers(1, length))


def as_given(positions):
    return positions if isinstance(positions, slice) else Positions(positions)


@given(st.data(), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2), st.integers(1, 2))
@settings(max_examples=60)
def test_the_buffer_is_a_table_that_forwards_overwrite(data, batch, length, more, layers):
    buffer = KVBuffer(layers, length, slots=length + more)
    assert buffer.slots == length + more
    assert not buffer.filled
    rows, cells, stamp = list(range(batch)), [dict() for _ in range(layers)], 0
    for _ in range(data.draw(st.integers(1, 4))):
        positions, writers, seen = data.draw(writes(len(rows), length))
        assert buffer.at(as_given(positions), writers, seen=seen) is buffer
        columns = (
            [list(range(length))[positions]] * len(rows)
            if isinstance(positions, slice)
            else positions.tolist()
        )
        for layer in range(layers):
            stamp += 1
            given_ = torch.tensor(
                [[100 * stamp + 10 * j + i for j in range(len(columns[0]))] for i in range(len(rows))]
            )
            states = given_[:, None, :, None].float()
            keys, values = buffer.update(states, -states, layer)
            for i, row in enumerate(rows):
                for j, p in enumerate(columns[i]):
                    if p >= 0 and (writers is None or writers[i]):
                        cells[layer][row, p] = float(given_[i, j])
            shown = length if seen is None else seen
            wanted = [[cells[layer].get((row, p), 0.0) for p in range(shown)] for row in rows]
            assert keys[:, 0, :, 0].tolist() == wanted
            assert values[:, 0, :, 0].tolist() == [[-x for x in row] for row in wanted]
            assert buffer.get_mask_sizes(1, layer) == (shown, 0)
            assert buffer.get_seq_length(layer) == 0
        assert buffer.filled
        if len(rows) > 1 and data.draw(st.booleans()):
            keep = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
            buffer.select_rows(torch.tensor(keep))
            rows = [rows[i] for i in keep]
    buffer.reuse(length)
    assert not buffer.filled
    keys, _ = buffer.at(slice(0, 1), None).update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0)
    assert keys[0, 0, :, 0].tolist() == [1.0] + [0.0] * (length - 1)


def test_further_canvases_leave_with_their_row():
    buffer = KVBuffer(1, 2)
    buffer.copies = 2
    buffer.written = torch.tensor([[True, False], [False, True], [True, True]])
    states = torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 1)
    buffer.at(slice(0, 2), None).update(states, states, 0)
    buffer.select_rows(torch.tensor([0, 2]))
    keys, _ = buffer.at(slice(0, 1), torch.zeros(4, dtype=torch.bool)).update(
        states[:4, :, :1], states[:4, :, :1], 0
    )
    assert keys[:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    assert buffer.written.tolist() == [[True, False], [True, True]]
    buffer.complete = True
    buffer.reuse(1)
    assert (buffer.copies, buffer.written, buffer.complete) == (1, None, False)
