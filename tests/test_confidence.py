"""Log confidences in float32 against float64, and the noise."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sampling.state import confidence, noise
from dllm_sampling.testing.data import logits

NONE = torch.zeros(0, dtype=torch.long)
BANNED = torch.tensor([1])


@given(logits(batch=(1, 1), width=(2, 40), vocabulary=(2, 30), scale=(0.0, 20.0)))
def test_the_ranking_never_reverses_a_float64_difference(values):
    best = values.argmax(-1)
    mine = confidence.log_confidence_of_best(values, best, NONE)[0]
    doubt = -torch.special.expm1(confidence.log_confidence_of_best(values.double(), best, NONE)[0])
    order = mine.argsort(descending=True)
    # What float32 cannot tell apart is a relative 1e-5 of the doubt 1 - c, not of c.
    ordered = doubt[order]
    assert (ordered.diff() >= -1e-5 * ordered[1:].clamp_min(1e-30)).all()


def test_it_separates_what_float64_rounds_to_one():
    values = torch.tensor([[[45.0, 0.0, 0.0]], [[50.0, 0.0, 0.0]]])
    p = values.double().softmax(-1)[..., 0]
    assert (p == 1).all()
    mine = confidence.log_confidence_of_best(values, values.argmax(-1), NONE)
    assert mine[1] > mine[0]


def test_a_banned_token_that_leads_by_far_overflows_nothing():
    values = torch.tensor([[3.0, 500.0, 1.0]])
    mine = confidence.log_confidence_of_best(values, torch.tensor([0]), BANNED)
    assert torch.allclose(mine, torch.tensor([-497.0]))


@given(logits(batch=(1, 3), width=(1, 9), vocabulary=(3, 30), scale=(0.0, 20.0)), st.data())
def test_the_best_is_that_of_what_is_not_banned_and_leaves_the_logits_as_they_were(values, data):
    ids = st.integers(0, values.shape[-1] - 1)
    banned = torch.tensor(sorted(data.draw(st.sets(ids, max_size=values.shape[-1] - 1))), dtype=torch.long)
    before = values.clone()
    best = confidence.best_of(values, banned)
    assert torch.equal(values, before)
    assert torch.equal(best, before.index_fill(-1, banned, -torch.inf).argmax(-1))
    mine = confidence.log_confidence_of_best(values, best, banned).double()
    exact = before.double().log_softmax(-1).gather(-1, best[..., None])[..., 0]
    assert torch.allclose(mine, exact, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**62), st.integers(0, 1000))
def test_noise_is_a_function_of_its_key(seed, step):
    rows = torch.arange(5)
    positions = torch.arange(7).expand(5, -1)
    seeds = noise.row_seeds(seed, rows)
    steps = torch.full((5, 1), step)
    whole = noise.keys(seeds[:, None], steps, positions, "tokens")
    part = noise.keys(seeds[3:4, None], steps[3:4], positions[3:4, 2:4], "tokens")
    assert whole[3:4, 2:4].equal(part)
    assert whole.unique().numel() == 35
    assert not whole.equal(noise.keys(seeds[:, None], steps, positions, "else"))
    drawn = noise.uniform(whole)
    assert ((drawn > 0) & (drawn < 1)).all()


def test_noise_is_uniform():
    key = noise.keys(torch.arange(200)[:, None], torch.tensor([[0]]), torch.arange(500)[None], "x")
    drawn = noise.uniform(key).flatten()
    counts = torch.histc(drawn, 50, 0, 1)
    # Chi-square with 49 degrees of freedom: above 110 with probability 1e-6.
    assert ((counts - 2000) ** 2 / 2000).sum() < 110
    gumbel = noise.gumbel(key[:10], 20)
    assert abs(gumbel.mean().item() - 0.5772) < 0.02


@given(
    st.integers(1, 700),
    st.integers(0, 2**31),
    st.sampled_from([1, 3, 1000]),
    st.booleans(),
)
def test_the_argmax_in_two_stages_is_torchs_own(size, seed, levels, nothing):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (2, 3, size), generator=generator).float()
    if nothing:
        values[0, 0] = -torch.inf
    assert torch.equal(confidence.argmax(values), values.argmax(-1))
