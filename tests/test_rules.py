"""Every shipped rule against a slow, obvious version in float64, and its stated properties."""

from __future__ import annotations

import math

import pytest
import torch
from dllm_sampling.strategies import (
    ConfidenceThreshold,
    DreamSchedule,
    DynamicThreshold,
    EntropyBound,
    EntropyThreshold,
    Factor,
    FixedK,
    Frechet,
    WithBudget,
)
from hypothesis import given
from hypothesis import strategies as st

from dllm_sampling import ConfigurationError, Decision, ForwardPlan, Observation, Sampling
from dllm_sampling.engine.commit import commit
from dllm_sampling.testing import observe
from dllm_sampling.testing.data import logits, observations

BAND = 1e-6


def committed(policy, values, masked, sampling=None):
    """What the policy commits through the engine's guard: `[batch, region]`, and the observation."""
    state, observation = observe(values, masked=masked, policy=policy, sampling=sampling)
    state.tensors.targets_in_block = state.targets.sum(1, keepdim=True)
    begin = getattr(policy, "begin", None)
    if begin is not None:
        begin(state, state.facts)
    decision = policy.select(state, observation)

    done = commit(state, ForwardPlan.full(state), observation, Decision(decision))
    return done.commit, observation


def confidences(values):
    """Candidates and confidences in float64: the mask id, which is the last, is no candidate."""
    p = values.double().softmax(-1)
    return p[..., :-1].max(-1)


@given(observations(), st.floats(0.05, 1.0))
def test_threshold_commits_exactly_the_confident_or_else_the_single_best(data, threshold):
    values, masked = data
    commit, _ = committed(ConfidenceThreshold(threshold=threshold), values, masked)
    c, _ = confidences(values)
    for row in range(len(values)):
        open_ = [i for i in range(values.shape[1]) if masked[row, i]]
        if any(abs(math.log(c[row, i]) - math.log(threshold)) < BAND for i in open_):
            continue
        expected = {i for i in open_ if c[row, i] >= threshold}
        got = set(commit[row].nonzero()[:, 0].tolist())
        if expected:
            assert got == expected
        else:
            assert len(got) == 1
            assert c[row, got.pop()] >= max(c[row, i] for i in open_) - BAND


@given(observations(width=(1, 14)), st.floats(0.05, 4.0))
def test_factor_commits_the_largest_n_that_passes(data, factor):
    values, masked = data
    commit, _ = committed(Factor(factor=factor), values, masked)
    c, _ = confidences(values)
    for row in range(len(values)):
        ordered = sorted((c[row, i].item() for i in range(values.shape[1]) if masked[row, i]), reverse=True)
        bounds = [(n + 1) * (1 - x) for n, x in enumerate(ordered, 1)]
        if any(abs(b - factor) < 1e-5 for b in bounds):
            continue
        largest = max([n for n, b in enumerate(bounds, 1) if b < factor], default=1)
        assert commit[row].sum() == largest
        # They are the most confident ones.
        kept = sorted((c[row, i].item() for i in commit[row].nonzero()[:, 0]), reverse=True)
        assert kept == pytest.approx(ordered[:largest], abs=1e-6)


def with_confidences(*values):
    """Logits whose most likely tokens have the given probabilities."""
    p = torch.tensor(values, dtype=torch.float64)[None, :, None]
    rest = (1 - p) / 2
    return torch.cat([p, rest, rest], -1).log().float()


@pytest.mark.parametrize(
    ("c", "factor", "count"),
    [
        ((0.9, 0.4), 1.0, 1),  # the published code commits both
        ((0.99, 0.99, 0.99, 0.35), 1.0, 3),  # all but the last pass; the published code takes the last
        ((0.99, 0.99, 0.99, 0.99), 1.0, 4),
        ((0.5, 0.45, 0.4), 0.1, 1),
        ((0.6, 0.6, 0.99), 1.0, 1),
    ],
)
def test_factor_where_the_published_code_is_off_by_one(c, factor, count):
    values = with_confidences(*c)
    commit, _ = committed(Factor(factor=factor), values, torch.ones(values.shape[:2], dtype=torch.bool))
    assert commit.sum() == count


SCORES = ["confidence", "margin", "entropy", "random", "left_to_right"]
# Rules by a number between 0 and 1: the larger it is, the fewer they commit.
BOUNDED = {
    "confidence_threshold": lambda x, score: ConfidenceThreshold(threshold=x, score=score),
    "dynamic_threshold": lambda x, score: DynamicThreshold(threshold=x, score=score),
    "factor": lambda x, score: Factor(factor=4.1 - 4 * x, score=score),
    "frechet": lambda x, score: Frechet(delta=x * 0.99, score=score),
    "entropy_bound": lambda x, score: EntropyBound(gamma=3 * (1 - x), score=score),
    "entropy_threshold": lambda x, score: EntropyThreshold(threshold=2 * (1 - x), score=score),
    "fixed_k": lambda x, score: FixedK(k=1 + int(10 * (1 - x)), score=score),
    "with_budget": lambda x, score: WithBudget(policy=Frechet(), k=1 + int(10 * (1 - x)), score=score),
}


@given(
    observations(),
    st.floats(0.05, 1.0),
    st.floats(0.05, 1.0),
    st.sampled_from(sorted(BOUNDED)),
    st.sampled_from(SCORES),
)
def test_a_looser_bound_commits_what_a_tighter_one_does_and_more(data, first, second, rule, score):
    """Whatever the score: it decides which positions come first, and the bound how many."""
    values, masked = data
    loose, tight = sorted((first, second))
    few, many = (picked(BOUNDED[rule](x, score), values, masked) for x in (tight, loose))
    assert not (few & ~many).any()


def picked(policy, values, masked):
    """What the policy itself picks of the eligible, without what the engine would force."""
    state, observation = observe(values, masked=masked, policy=policy)
    return policy.select(state, observation) & observation.eligible


@given(observations(), st.floats(0.05, 1.0), st.sampled_from(["confidence_threshold", "factor", "frechet"]))
def test_another_score_takes_as_many_and_the_best_of_all(data, bound, rule):
    values, masked = data
    plain = picked(BOUNDED[rule](bound, "confidence"), values, masked)
    for score in SCORES[1:]:
        policy = BOUNDED[rule](bound, score)
        state, observation = observe(values, masked=masked, policy=policy)
        taken = policy.select(state, observation) & masked
        assert taken.sum(1).tolist() == plain.sum(1).tolist()
        scores = policy.score(state, observation)
        worst = scores.masked_fill(~taken, torch.inf).amin(1)
        assert (worst >= scores.masked_fill(taken | ~masked, -torch.inf).amax(1)).all()


@given(
    observations(),
    st.integers(1, 14),
    st.sampled_from(SCORES),
)
def test_fixed_k_commits_exactly_its_budget(data, k, score):
    values, masked = data
    commit, observation = committed(FixedK(k=k, score=score), values, masked)
    assert (commit.sum(1) == masked.sum(1).clamp_max(k)).all()
    assert not (commit & ~masked).any()
    p = values.double().softmax(-1)
    slow = {
        "confidence": lambda: confidences(values)[0],
        "margin": lambda: p.topk(2, -1).values[..., 0] - p.topk(2, -1).values[..., 1],
        "entropy": lambda: torch.special.entr(p).sum(-1).neg(),
        "random": lambda: None,
        "left_to_right": lambda: -torch.arange(values.shape[1]).expand(len(values), -1).double(),
    }[score]()
    if slow is not None:
        for row in range(len(values)):
            worst = slow[row][commit[row]].min()
            left = slow[row][masked[row] & ~commit[row]]
            assert not len(left) or worst >= left.max() - 1e-5
    assert observation.eligible.equal(masked)


@given(logits(batch=(1, 1), width=(2, 10)))
def test_equal_scores_go_to_the_lower_position(values):
    values = values[:, :1].expand_as(values).contiguous()
    masked = torch.ones(values.shape[:2], dtype=torch.bool)
    commit, _ = committed(FixedK(k=2), values, masked)
    assert commit[0].nonzero()[:, 0].tolist() == [0, 1]
    commit, _ = committed(ConfidenceThreshold(threshold=1.0), values, masked)
    assert commit[0, 0]


def test_fixed_k_random_is_uniform_over_positions():
    values = torch.zeros(2000, 4, 3)
    commit, _ = committed(FixedK(k=1, score="random"), values, torch.ones(2000, 4, dtype=torch.bool))
    # Each count is binomial(2000, 1/4): six standard deviations are 116.
    assert (commit.sum(0) - 500).abs().max() < 116


@given(
    observations(batch=(1, 2), width=(1, 20)),
    st.integers(1, 30),
    st.sampled_from(["maskgit_plus", "topk_margin", "entropy"]),
)
def test_dream_schedule_commits_what_the_published_formula_says(data, steps, alg):
    values, masked = data
    masked = torch.ones_like(masked)
    policy = DreamSchedule(alg=alg, steps=steps)
    sampling = Sampling(confidence="filtered")
    state, observation = observe(values, masked=masked, policy=policy, sampling=sampling)
    state.tensors.idle_left += policy.idle_steps(values.shape[1])
    policy.begin(state, state.facts)
    times = torch.linspace(1, policy.eps, steps + 1)
    open_ = masked.sum(1)
    for step in range(steps):
        chosen = policy.select(state, observation)
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else torch.tensor(1.0)
        assert chosen.sum(1).tolist() == (open_ * share).int().tolist()
        state.tensors.steps += 1


def test_dream_origin_commits_each_position_with_the_published_probability():
    policy = DreamSchedule(alg="origin", steps=4)
    state, observation = observe(torch.zeros(400, 20, 3), policy=policy)
    policy.begin(state, state.facts)
    share = 1 - torch.linspace(1, policy.eps, 5)[1]
    # 8,000 draws: six standard deviations are 0.03.
    assert policy.select(state, observation).float().mean().item() == pytest.approx(share.item(), abs=0.03)
    state.tensors.steps += 3
    assert policy.select(state, observation).all()


def test_alg_temp_draws_positions_by_their_scores_without_replacement():
    c = (0.8, 0.5, 0.6)
    values = with_confidences(*c).expand(6000, -1, -1).contiguous()
    policy = DreamSchedule(alg="maskgit_plus", steps=2, alg_temp=0.5)
    state, observation = observe(values, policy=policy)
    policy.begin(state, state.facts)
    drawn = policy.select(state, observation)
    assert (drawn.sum(1) == 1).all()  # int(3 * about 0.4995) of three
    expected = (torch.tensor(c) / 0.5).softmax(-1)
    assert torch.allclose(drawn.float().mean(0), expected, atol=0.04)


@pytest.mark.parametrize("policy", [FixedK, DreamSchedule])
def test_settings_without_effect_are_refused(policy):
    with pytest.raises(ValueError, match=r"not both|no effect"):
        policy.model_validate(
            {"k": 1, "steps": 2} if policy is FixedK else {"alg": "origin", "alg_temp": 0.3}
        )


def test_fixed_k_steps_needs_a_schedule_that_knows_its_blocks():
    policy = FixedK(steps=4)
    state, _ = observe(torch.zeros(1, 4, 3), policy=policy)
    with pytest.raises(ConfigurationError, match=r"steps=4 cannot be shared out.*give k"):
        policy.begin(state, state.facts)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda n: sum(n) > 0), st.integers(1, 60))
def test_fixed_k_shares_its_steps(targets, steps):
    policy = FixedK(steps=steps)
    state, _ = observe(torch.zeros(1, 4, 3), policy=policy)
    state.tensors.targets_in_block = torch.tensor([targets])
    used = [n for n in targets if n]
    if len(used) > steps:
        with pytest.raises(ConfigurationError, match="less than the number of blocks"):
            policy.begin(state, state.facts)
        return
    policy.begin(state, state.facts)
    shares = state.memory(policy)["steps"][0].tolist()
    if len(set(targets)) == 1 and steps % len(targets) == 0:
        assert shares == [steps // len(targets)] * len(targets)
    for n, share in zip(targets, shares, strict=True):
        if n:
            assert abs(share - steps * n / sum(targets)) <= 1 or share == 1


def test_observation_scores_match_float64():
    values = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)) * 4
    _, seen = observe(values)
    p = values.double().softmax(-1)
    assert isinstance(seen, Observation)
    torch.testing.assert_close(seen.log_confidence.double(), p[..., :-1].amax(-1).log())
    torch.testing.assert_close(seen.entropy.double(), torch.special.entr(p).sum(-1), atol=1e-5, rtol=1e-5)
    top = p.topk(2, -1).values
    torch.testing.assert_close(seen.margin.double(), top[..., 0] - top[..., 1], atol=1e-6, rtol=1e-5)
    tokens = torch.full((3, 5), 7)
    torch.testing.assert_close(seen.log_prob(tokens).double(), p[..., 7].log(), atol=1e-5, rtol=1e-5)
