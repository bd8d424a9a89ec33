"""Every unmasking policy against a slow, obvious version, step by step over whole runs.

Regions that are no span, stale positions, restrictions, idle rows, several blocks and rows that leave
are all drawn, so what a rule reads, keeps and counts is tried, not its formula alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from dllm_sampling.strategies import (
    P2,
    ConfidenceThreshold,
    Dilated,
    DreamSchedule,
    DynamicThreshold,
    EarlyCommit,
    EntropyBound,
    EntropyThreshold,
    Factor,
    FirstOf,
    FixedK,
    Frechet,
    Hierarchy,
    Klass,
    LocalLeap,
    PCSampler,
    ReMDM,
    Saber,
    SchED,
    Union,
    WithBudget,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import BlockSchedule, ConfigurationError, PluginError, Region, Sampler
from dllm_sampling.testing import observe
from tests.slow import Holes, model, prompts, ranked, settings_of_a_run, steps, sure, walk

few = settings(max_examples=40)


# Rules that keep nothing ---------------------------------------------------------------------------


SCORES = {
    "confidence": lambda row, i: row.log_c(i),
    "margin": lambda row, i: row.margin(i),
    "entropy": lambda row, i: -row.entropy(i),
    "left_to_right": lambda row, i: -row.positions[i],
    "random": lambda row, i: row.uniform(i, "unmasking.score"),
}
scores = st.sampled_from(sorted(SCORES))


def as_many(score, chosen):
    """As many positions as `chosen(row, memory)` names by confidence, the best by the score."""

    def expected(row, memory):
        count = len(set(chosen(row, memory)))
        return ranked(row.may, lambda i: SCORES[score](row, i))[:count]

    return chosen if score == "confidence" else expected


def threshold(bound):
    return lambda row, _: {i for i in row.may if sure(row.log_c(i), math.log(bound)) >= math.log(bound)}


@given(settings_of_a_run(), st.floats(0.05, 1.0), scores)
@few
def test_confidence_threshold(run, bound, score):
    """With another score than confidence: as many as pass, the best by that score."""
    walk(run, ConfidenceThreshold(threshold=bound, score=score), as_many(score, threshold(bound)))


@given(settings_of_a_run(), st.floats(0.05, 4.0), scores)
@few
def test_factor(run, factor, score):
    def expected(row, _):
        best = ranked(row.may, row.log_c)
        n = [n for n, i in enumerate(best, 1) if sure((n + 1) * (1 - row.c(i)), factor) < factor]
        return best[: max(n, default=0)]

    walk(run, Factor(factor=factor, score=score), as_many(score, expected))


@given(settings_of_a_run(), st.floats(0.0, 0.9), scores)
@few
def test_frechet(run, delta, score):
    def expected(row, _):
        best = ranked(row.may, row.log_c)
        n, total = 1, 0.0
        for count, i in enumerate(best, 1):
            total += row.c(i)
            if sure(total - (count - 1) - (1 - row.c(i)), delta) > delta:
                n = count
        return best[:n]

    walk(run, Frechet(delta=delta, score=score), as_many(score, expected))


@given(settings_of_a_run(), st.floats(0.0, 2.0), scores)
@few
def test_entropy_bound(run, gamma, score):
    """The bound is that of the positions in the order of the score."""

    def expected(row, _):
        best = ranked(row.may, lambda i: SCORES[score](row, i))
        n = 1
        for count in range(2, len(best) + 1):
            entropies = [row.entropy(i) for i in best[:count]]
            if sure(sum(entropies) - max(entropies), gamma) <= gamma:
                n = count
        return best[:n]

    walk(run, EntropyBound(gamma=gamma, score=score), expected)


@given(settings_of_a_run(), st.floats(0.0, 2.0), scores)
@few
def test_entropy_threshold(run, bound, score):
    def expected(row, _):
        chosen = {i for i in row.may if sure(row.entropy(i), bound) <= bound}
        if score == "entropy" and chosen:
            return chosen
        return ranked(row.may, lambda i: SCORES[score](row, i))[: max(len(chosen), 1)]

    walk(run, EntropyThreshold(threshold=bound, score=score), expected)


@given(settings_of_a_run(), st.floats(0.5, 1.0), st.floats(0.05, 0.5), st.integers(0, 4))
@few
def test_local_leap(run, bound, relaxed, radius):
    def expected(row, _):
        anchors = threshold(bound)(row, None)
        near = threshold(relaxed)(row, None)
        near = {i for i in near if any(abs(row.positions[i] - row.positions[a]) <= radius for a in anchors)}
        return anchors | near

    walk(run, LocalLeap(threshold=bound, relaxed_threshold=relaxed, radius=radius), expected)


@given(settings_of_a_run(), st.floats(0.5, 1.0), st.floats(0.0, 0.5))
@few
def test_hierarchy(run, high, low):
    def expected(row, _):
        open_at = {row.positions[i]: i for i in row.may}
        chosen = set()
        for i in row.may:
            start = end = row.positions[i]
            while start - 1 in open_at:
                start -= 1
            while end + 1 in open_at:
                end += 1
            best = ranked([open_at[p] for p in range(start, end + 1)], row.log_c)[0]
            if sure(row.c(i), high) > high or (i == best and sure(row.c(i), low) > low):
                chosen.add(i)
        return chosen or ranked(row.may, row.log_c)[:1]

    walk(run, Hierarchy(threshold=high, low_threshold=low), expected)


def picked(policy, values, masked=None):
    """What the policy picks of one row that is all fresh."""
    state, seen = observe(
        values[None], masked=None if masked is None else torch.tensor([masked]), policy=policy
    )
    chosen = policy.select(state, seen) & seen.eligible
    return chosen[0].nonzero()[:, 0].tolist()


def test_hierarchy_takes_the_best_of_every_run_and_of_no_other():
    """Two runs around a committed position; equal confidences in one of them."""
    c = torch.tensor([0.5, 0.6, 0.99, 0.5, 0.5, 0.45])
    rest = (1 - c) / 2
    values = torch.stack([c, rest, rest, torch.zeros(6)], 1).log()
    masked = [True, True, False, True, True, True]
    assert picked(Hierarchy(threshold=0.9, low_threshold=0.4), values, masked) == [1, 3]
    # Above `low`, not at it; then the best of all.
    assert picked(Hierarchy(threshold=0.9, low_threshold=0.7), values, masked) == [1]


# Candidates of probability 1/2, exactly, and of entropy ln 2 and 0.
HALF = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
CERTAIN = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])


@pytest.mark.parametrize(
    ("policy", "taken"),
    [
        (ConfidenceThreshold(threshold=0.5), [0, 1, 2]),  # at least
        (LocalLeap(threshold=0.5, relaxed_threshold=0.5), [0, 1, 2]),
        (LocalLeap(threshold=1.0, relaxed_threshold=0.5, radius=1), [0, 1]),
        (LocalLeap(threshold=1.0, relaxed_threshold=0.5, radius=2), [0, 1, 2]),
        (LocalLeap(threshold=1.0, relaxed_threshold=0.5, radius=0), [0]),
        (Hierarchy(threshold=1.0, low_threshold=1.0), [0]),  # above: the best of all
        (Hierarchy(threshold=0.5, low_threshold=0.5), [0]),
        (Hierarchy(threshold=0.5, low_threshold=0.4), [0]),
        (Dilated(threshold=0.5), [0, 1, 2]),
        (EntropyThreshold(threshold=0.0), [0]),  # at most
        (EntropyBound(gamma=0.0), [0, 1]),
        (Frechet(delta=0.0), [0]),  # 1 + 1/2 - 1 is not more than 1 - 1/2
        (Factor(factor=1.5), [0]),  # 3 (1 - 1/2) is not less
        (Factor(factor=1.6), [0, 1]),
        (WithBudget(policy=ConfidenceThreshold(threshold=0.5), k=2), [0, 1]),
        (FixedK(), [0]),
    ],
    ids=str,
)
def test_at_the_bound_itself(policy, taken):
    state, seen = observe(torch.stack([CERTAIN, HALF, HALF])[None], policy=policy)
    region = Region.between(state, 1, 4, starts_block=True)
    getattr(policy, "block_started", lambda state, region: None)(state, region)
    chosen = policy.select(state, seen) & seen.eligible
    assert chosen[0].nonzero()[:, 0].tolist() == taken


@given(
    settings_of_a_run(),
    st.floats(0.2, 1.0),
    st.floats(0.0, 0.9),
    st.integers(0, 6),
    st.integers(0, 3),
    scores,
)
@few
def test_dynamic_threshold(run, high, alpha, window, tail, score):
    def expected(row, _):
        inside = [i for i in row.inside if row.masked[i] or row.committed[i]]
        open_ = sum(row.masked[i] for i in inside)
        total = len(inside)
        end = max(row.positions) + 1
        for p, masked in row.canvas.items():
            if p >= end and (p < end + window or p > max(row.canvas) - tail):
                total += 1
                open_ += masked
        share = 1.0 if row.block_forwards == 0 else open_ / max(total, 1)
        return threshold(high * (1 - alpha * (1 - share)))(row, None)

    policy = DynamicThreshold(threshold=high, alpha=alpha, window=window, tail=tail, score=score)
    walk(run, policy, as_many(score, expected))


# Budgets -------------------------------------------------------------------------------------------


@given(settings_of_a_run(), st.none() | st.integers(1, 5), scores)
@few
def test_fixed_k(run, k, score):
    policy = FixedK(k=k, score=score)
    walk(run, policy, lambda row, _: ranked(row.may, lambda i: SCORES[score](row, i))[: k or 1])


@given(settings_of_a_run(), st.integers(1, 4))
@few
def test_fixed_k_at_random_takes_its_budget(run, k):
    sets = set()
    for step in steps(run, FixedK(k=k, score="random")):
        chosen = step.decision.commit & step.observation.eligible
        assert chosen.sum(1).tolist() == step.observation.eligible.sum(1).clamp_max(k).tolist()
        sets.add(tuple(chosen.flatten().tolist()))


def test_a_random_choice_is_another_one_for_another_seed_row_and_step():
    chosen = []
    for seed in (0, 1):
        sampler = Sampler(model(), unmasking=FixedK(k=6, score="random"), schedule="whole_canvas")
        first = next(sampler.steps(prompts([2, 2]), 12, seed=seed))
        chosen += first.decision.commit.tolist()
    assert len({tuple(x) for x in chosen}) == 4


class AllBlocks(BlockSchedule):
    """Every block at once, each under its number."""

    name: ClassVar[str] = "all_blocks"
    block_length: int = 3

    def plan_region(self, state):
        starts = state.forward_index == 0
        region = Region.between(state, state.first_target, state.length, starts_block=starts)
        return replace(region, blocks=(region.positions.columns - state.first_target) // self.block_length)

    def plan_blocks(self, state):
        counts = state.targets[:, state.first_target :].long()
        missing = -counts.shape[1] % self.block_length
        return torch.nn.functional.pad(counts, (0, missing)).unflatten(1, (-1, self.block_length)).sum(-1)


@given(
    settings_of_a_run(
        schedules=st.one_of(
            st.builds(lambda n: {"name": "fixed_blocks", "block_length": n}, st.integers(1, 8)),
            st.just({"name": "whole_canvas"}),
            st.builds(AllBlocks, block_length=st.integers(1, 6)),
        ),
        caches=("none",),
        fill=False,
    ),
    st.integers(12, 20),
)
@few
def test_fixed_k_shares_out_its_steps(run, total):
    schedule = run["settings"]["schedule"]
    length = schedule.block_length if isinstance(schedule, AllBlocks) else schedule.get("block_length", 99)
    blocks = [min(length, run["gen_length"] - start) for start in range(0, run["gen_length"], length)]
    shares = []
    for n in range(len(blocks)):
        until, before = sum(blocks[: n + 1]), sum(blocks[:n])
        whole = sum(blocks)
        shares.append(max(until * total // whole - before * total // whole, 1))

    def expected(row, _):
        open_ = [row.blocks[i] for i in row.inside if row.masked[i]]
        block = max(open_, default=0)
        n, share = blocks[block], shares[block]
        k = n // share + (row.block_steps < n % share)
        return ranked(row.may, row.log_c)[: max(k, 1)]

    walk(run, FixedK(steps=total), expected)


def test_steps_fill_every_block_in_its_share_of_them():
    for total, gen_length, length in ((8, 16, 8), (6, 16, 8), (5, 12, 5), (16, 16, 4)):
        sampler = Sampler(
            model(),
            unmasking=FixedK(steps=total),
            schedule={"name": "fixed_blocks", "block_length": length},
            stop_at_eos=False,
        )
        assert sampler.generate([[1, 2]], gen_length).forwards == total


@pytest.mark.parametrize("total", [1, 2])
def test_fewer_steps_than_blocks_are_refused(total):
    sampler = Sampler(
        model(), unmasking=FixedK(steps=total), schedule={"name": "fixed_blocks", "block_length": 4}
    )
    with pytest.raises(ConfigurationError, match=f"steps={total} is less than the number of blocks, 3"):
        sampler.generate([[1]], 12)
    with pytest.raises(ConfigurationError, match=r"give k or steps, not both \(k=1, steps=2\)"):
        Sampler(model(), unmasking={"name": "fixed_k", "k": 1, "steps": 2})


TABLE = {"num_token": 50, "p_baseline_dict": {"0": 20, "2": 3, "3": 10}}


@given(settings_of_a_run(), st.floats(0.0, 0.6), st.floats(0.2, 3.0), st.integers(1, 3))
@few
def test_pc_sampler(tmp_path_factory, run, decay, alpha, k):
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(json.dumps(TABLE))

    def expected(row, _):
        start = min(row.positions[i] for i in row.inside)

        def score(i):
            count = TABLE["p_baseline_dict"].get(str(row.token(i)), 1)
            calibrated = min(-row.c(i) * math.log(count / 50 + 1e-9), alpha)
            return calibrated * math.exp(-decay * (row.positions[i] - start))

        return ranked(row.may, score)[:k]

    calibrated = PCSampler(frequencies=path, decay=decay, alpha=alpha)
    walk(run, FixedK(k=k, score=calibrated), expected)


# Clocks --------------------------------------------------------------------------------------------


@given(
    settings_of_a_run(caches=("none",)),
    st.integers(1, 9),
    st.sampled_from(["maskgit_plus", "topk_margin", "entropy"]),
    st.sampled_from([1e-3, 0.2]),
)
@few
def test_dream_schedule(run, total, alg, eps):
    times = torch.linspace(1, eps, total + 1)
    score = {
        "maskgit_plus": lambda row, i: row.c(i),
        "topk_margin": lambda row, i: row.margin(i),
        "entropy": lambda row, i: -row.entropy(i),
    }[alg]

    def expected(row, _):
        at = min(row.steps, total - 1)
        share = 1 - times[at + 1] / times[at] if at < total - 1 else torch.tensor(1.0)
        k = int(sum(row.masked) * share)
        return ranked(row.may, lambda i: score(row, i))[:k]

    walk(run, DreamSchedule(steps=total, alg=alg, eps=eps), expected)


@given(settings_of_a_run(caches=("none",)), st.integers(2, 6), st.floats(0.05, 2.0))
@few
def test_dream_schedule_draws_with_the_noise_of_its_row(run, total, temperature):
    """Places by score / alg_temp + Gumbel noise; with `origin` each open target with the step's share."""
    times = torch.linspace(1, 1e-3, total + 1)

    def share(row):
        return 1 - times[row.steps + 1] / times[row.steps] if row.steps < total - 1 else torch.tensor(1.0)

    def drawn(row, _):
        def score(i):
            return row.c(i) / temperature - math.log(-math.log(row.uniform(i, "unmasking")))

        return ranked(row.may, score)[: int(sum(row.masked) * share(row))]

    run["settings"]["wrappers"] = []  # so that the last step commits everything
    run["settings"]["schedule"] = "whole_canvas"
    walk(run, DreamSchedule(steps=total, alg="maskgit_plus", alg_temp=temperature), drawn)
    walk(
        run,
        DreamSchedule(steps=total, alg="origin"),
        lambda row, _: {
            i for i in row.may if sure(row.uniform(i, "unmasking"), float(share(row))) < share(row)
        },
    )


@given(
    settings_of_a_run(
        schedules=st.one_of(
            st.builds(lambda n: {"name": "fixed_blocks", "block_length": n}, st.integers(1, 12)),
            st.just({"name": "whole_canvas"}),
        )
    ),
    st.integers(2, 3),
    st.floats(0.0, 0.8),
)
@few
def test_dilated(run, base, skip):
    def rounds(length):
        """The round of every place: strides length/base, length/base^2, ..., 1."""
        found, stride, left = [], length // base, list(range(length))
        while left:
            now = [k for k in left if stride <= 1 or k % stride == 0]
            found += [now] if now else []
            left = [k for k in left if k not in now]
            stride //= base
        if len(found) > 1 and len(found[-1]) < len(found[-2]):
            found = [*found[:-2], found[-2] + found[-1]]
        return found

    def expected(row, _):
        parts = rounds(len(row.inside))
        chosen = set()
        for i in row.may:
            at = next(n for n, part in enumerate(parts) if i in part)
            last = row.block_steps >= len(parts) - 1
            if last or (at <= row.block_steps and sure(row.c(i), skip) >= skip):
                chosen.add(i)
        return chosen

    walk(run, Dilated(base=base, threshold=skip), expected)


@given(
    settings_of_a_run(),
    st.integers(1, 6),
    st.floats(0.0, 3.0),
    st.sampled_from(["linear", "sine", "geometric"]),
)
@few
def test_p2(run, total, eta, kappa):
    share = {
        "linear": lambda t: t,
        "sine": lambda t: math.sin(math.pi * t / 2),
        "geometric": lambda t: 1 - (1 - t) ** 2,
    }[kappa]

    def expected(row, _):
        among = [i for i in row.inside if row.eligible[i] or row.committed[i]]
        best = ranked(among, lambda i: row.log_c(i) * (eta if row.committed[i] else 1.0))
        t = min((row.steps + 1) * (1 / total), 1.0)
        masked = int(torch.tensor(float(len(among))) * torch.tensor(1 - share(t)))  # float32, as published
        keep = set(best[: len(among) - masked])
        return {i for i in keep if row.eligible[i]}, {i for i in among if row.committed[i] and i not in keep}

    walk(run, P2(steps=total, eta=eta, kappa=kappa), expected)


# Rules that remember -------------------------------------------------------------------------------


@given(settings_of_a_run(), st.floats(0.0, 0.5), st.sampled_from([0.05, 0.5, 3.0]), st.integers(1, 2))
@few
def test_klass(run, bound, kl, history):
    def expected(row, memory):
        before, counts = memory.get("before", {}), memory.get("counts", {})
        if row.block_forwards == 0:
            before = {}
        now, stable = {}, {}
        for i in row.inside:
            at = row.positions[i]
            now[at] = row.p[i]
            stable[at] = 0
            if at in before:
                divergence = sum(
                    x * (math.log(x) - math.log(y))
                    for x, y in zip(row.p[i], before[at], strict=True)
                    if x > 0
                )
                stable[at] = counts[at] + 1 if sure(divergence, kl) < kl else 0
        memory["before"], memory["counts"] = now, stable
        return {i for i in row.may if stable[row.positions[i]] >= history and sure(row.c(i), bound) > bound}

    walk(run, Klass(threshold=bound, kl_threshold=kl, history=history), expected)


@given(settings_of_a_run(), st.integers(1, 4), st.integers(1, 4))
@few
def test_saber(run, least, divisor):
    def expected(row, memory):
        before, at_commit = memory.setdefault("before", {}), memory.setdefault("at_commit", {})
        mean = sum(at_commit.values()) / len(at_commit) if at_commit else 1.0
        sure_ones = {i for i in row.may if at_commit and sure(row.c(i), mean) > mean}
        commit = sure_ones if len(sure_ones) >= least else set(ranked(row.may, row.c)[:least])
        drop = {i: before.get(row.positions[i], 0.0) - row.c(i) for i in row.inside}
        for i in row.inside:
            before[row.positions[i]] = row.c(i)
        for i in commit:
            at_commit[row.positions[i]] = row.c(i)
        if all(not row.masked[i] or i in commit for i in row.inside):
            return commit, set()
        m = max(least, len(commit))
        back = min(max(least // 2, math.ceil(m / divisor)), m - 1)
        among = [i for i in row.inside if i in commit or row.committed[i]]
        taken = set(ranked(among, lambda i: round(drop[i], 9))[:back])
        return commit - taken, {i for i in taken if row.committed[i]}

    walk(run, Saber(least=least, remask_divisor=divisor), expected)


@given(
    settings_of_a_run(
        schedules=st.builds(lambda n: {"name": "fixed_blocks", "block_length": n}, st.integers(2, 8))
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0.3, 0.5, 0.875]),
    st.none() | st.integers(0, 4),
)
@few
def test_remdm(run, k, number, start, loops):
    def expected(row, memory):
        if row.block_steps == 0:
            memory["done"] = 0
        done = memory.get("done", 0)
        n = sum(row.masked[i] or row.committed[i] for i in row.inside)
        total = n if loops is None else loops
        best = ranked(row.may, row.log_c)
        commit = set(best[: number if 0 < done <= total else k])
        still = sum(row.masked[i] and i not in commit for i in row.inside)
        reached = n - still >= max(int(n * torch.tensor(1.0).mul(start).item()), 1)
        again = any(row.masked) and done < total and (done > 0 or reached)
        memory["done"] = done + 1 if again else total + 1 if done >= total else done
        if not again:
            return commit, set()
        at_commit = row.state.committed_confidence[row.state.rows.index(row.row)].tolist()
        among = [i for i in row.inside if i in commit or row.committed[i]]

        def stored(i):
            return row.c(i) if i in commit else at_commit[row.positions[i]]

        taken = set(ranked(among, lambda i: -stored(i))[:number])
        return commit - taken, {i for i in taken if row.committed[i]}

    walk(run, ReMDM(k=k, number=number, start=start, loops=loops), expected)


def one(row, _):
    """The most confident of what may be committed."""
    return set(ranked(row.may, row.log_c)[:1])


@given(
    settings_of_a_run(fill=False),
    st.none() | st.integers(0, 5),
    st.integers(1, 6),
    st.none() | st.integers(1, 8),
    st.tuples(st.floats(1, 9), st.floats(1, 9), st.floats(1, 9)),
)
@few
def test_early_commit(run, answer, length, total, gaps):
    gaps = tuple(sorted(gaps, reverse=True))

    def expected(row, _):
        inside = [i for i in row.inside if row.masked[i] or row.committed[i]]
        if answer is not None:
            first = row.state.first_target + answer
            inside = [i for i in inside if first <= row.positions[i] < first + length]
        if not inside:
            return one(row, None)
        gap = sum(row.gap(i) for i in inside) / len(inside)
        targets = row.canvas
        progress = 1 - sum(targets.values()) / len(targets) if total is None else (row.steps + 1) / total
        bound = (
            gaps[0] if sure(progress, 0.33) < 0.33 else gaps[1] if sure(progress, 0.67) < 0.67 else gaps[2]
        )
        return set(row.may) if sure(gap, bound) >= bound else one(row, None)

    answers = {} if answer is None else {"answer_start": answer, "answer_length": length}
    if answer is not None and answer + length > run["gen_length"]:
        return  # an answer beyond the targets
    walk(run, EarlyCommit(policy=FixedK(), steps=total, gaps=gaps, **answers), expected)


@given(
    settings_of_a_run(),
    st.sampled_from(["cosine", "linear", "exponential"]),
    st.floats(2, 6),
    st.floats(0.5, 2),
    st.booleans(),
    st.none() | st.integers(2, 8),
)
@few
def test_sched(run, schedule, high, low, stable, total):
    def expected(row, memory):
        open_ = [i for i in row.inside if row.masked[i]]
        best = {
            row.positions[i]: max(range(len(row.logits[i])), key=lambda v: row.logits[i][v])
            for i in row.inside
        }
        before = memory.get("best")
        memory["best"] = best
        if not open_:
            return set()
        gap = sum(row.gap(i) for i in open_) / len(open_)
        targets = row.canvas
        p = 1 - sum(targets.values()) / len(targets) if total is None else row.steps / (total - 1)
        p = min(p, 1.0)
        tau = {
            "linear": high + (low - high) * p,
            "cosine": low + (high - low) * (1 + math.cos(math.pi * p)) / 2,
            "exponential": low + (high - low) * math.exp(-3 * p),
        }[schedule]
        settled = sure(gap, tau) >= tau
        if stable:
            at = [row.positions[i] for i in open_]
            settled = settled and before is not None and all(before.get(p) == best[p] for p in at)
        return set(row.may) if settled else one(row, None)

    rate = {"tau_k": 3.0} if schedule == "exponential" else {}
    policy = SchED(
        policy=FixedK(), schedule=schedule, tau_high=high, tau_low=low, stable=stable, steps=total, **rate
    )
    walk(run, policy, expected)


# Policies made of others ----------------------------------------------------------------------------


@given(settings_of_a_run(), st.floats(0.2, 1.0), st.floats(0.0, 1.5), st.integers(1, 4), scores)
@few
def test_composites(run, high, entropy, k, score):
    confident = threshold(high)

    def certain(row, _):
        chosen = {i for i in row.may if sure(row.entropy(i), entropy) <= entropy}
        return chosen or set(ranked(row.may, lambda i: -row.entropy(i))[:1])

    first, second = ConfidenceThreshold(threshold=high), EntropyThreshold(threshold=entropy)
    walk(run, FirstOf(policies=(first, second)), lambda row, _: confident(row, _) or certain(row, _))
    walk(run, Union(policies=(first, second)), lambda row, _: confident(row, _) | certain(row, _))
    walk(
        run,
        WithBudget(policy=first, k=k, score=score),
        lambda row, _: ranked(confident(row, _), lambda i: SCORES[score](row, i))[:k],
    )
    walk(
        run,
        WithBudget(policy=Union(policies=(first, second)), k=k),
        lambda row, _: ranked(confident(row, _) | certain(row, _), row.log_c)[:k],
    )


def test_a_budget_is_spent_on_what_may_be_committed():
    """What is held back takes nothing from the budget."""
    sampler = Sampler(
        model(3),
        unmasking=WithBudget(policy=ConfidenceThreshold(threshold=0.01), k=2),
        schedule="whole_canvas",
        wrappers=[Holes(share=0.6)],
        stop_at_eos=False,
    )
    for step in sampler.steps([[1, 2]], 16):
        wanted = step.observation.eligible.sum().clamp_max(2)
        assert (step.decision.commit & step.observation.eligible).sum() == wanted


@pytest.mark.parametrize(
    ("policy", "steps_of"),
    [
        (FirstOf(policies=(FixedK(), P2(steps=3))), lambda n: 3 * (n + 1)),
        (Union(policies=(DreamSchedule(steps=7), FixedK())), lambda n: 7),
        (WithBudget(policy=DreamSchedule(steps=5), k=1), lambda n: 5),
        (EarlyCommit(policy=DreamSchedule(steps=5)), lambda n: 5),
        (SchED(policy=DreamSchedule(steps=5)), lambda n: 5),
        (Dilated(), lambda n: n),
        (ReMDM(), lambda n: n),
        (ReMDM(loops=3), lambda n: 3 * n),
        (P2(steps=4), lambda n: 4 * (n + 1)),
        (DreamSchedule(steps=6), lambda n: 6),
        (Saber(), lambda n: 0),
        (ConfidenceThreshold(), lambda n: 0),
    ],
)
def test_how_long_a_rule_may_wait(policy, steps_of):
    assert [policy.idle_steps(n) for n in (1, 5, 12)] == [steps_of(n) for n in (1, 5, 12)]


@pytest.mark.parametrize("holder", [FirstOf, Union])
def test_a_policy_that_does_more_than_commit_cannot_be_combined(holder):
    policy = holder(policies=(FixedK(), Saber()))
    with pytest.raises(PluginError, match="saber returns a Decision"):
        Sampler(model(), unmasking=policy).generate([[1]], 6)


def test_policies_are_asked_in_their_order():
    """The second is what decides where the first commits nothing, and only there."""
    never = ConfidenceThreshold(threshold=1.0)
    run = {
        "model": model(5, scale=1.0), "lengths": [3], "gen_length": 8, "settings": {"schedule": "whole_canvas"},
    }  # fmt: skip
    for policies in ((never, FixedK(k=3)), (FixedK(k=3), never)):
        walk(run, FirstOf(policies=policies), lambda row, _: ranked(row.may, row.log_c)[:3])
