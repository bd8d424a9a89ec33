"""The catalogue: slow, obvious versions in float64, special cases, and what the shared hooks promise."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from dllm_sampling.strategies import (
    DynamicThreshold,
    EarlyCommit,
    EntropyBound,
    EntropyThreshold,
    Factor,
    Frechet,
    Hierarchy,
    LocalLeap,
    SchED,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from dllm_sampling import (
    ConfigurationError,
    Decision,
    DecodingError,
    ForwardPlan,
    LogitsTransform,
    NestedCachePolicy,
    Observer,
    PluginError,
    Sampler,
    UnmaskingPolicy,
    load_model,
    realigned,
    top_k,
)
from dllm_sampling.policies.kinds import CachePolicy
from dllm_sampling.testing import ChosenModel, observe, tiny_model
from dllm_sampling.testing.data import observations

BAND = 1e-5


def prompts_of(lengths, seed=0):
    """Random prompts for the tiny model."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 60, (n,), generator=generator).tolist() for n in lengths]


def picked(policy, values, masked):
    """What the rule picks of what is eligible, and confidences and entropies in float64."""
    state, observation = observe(values, masked=masked, policy=policy)
    state.clock.block_forwards = 1
    chosen = policy.select(state, observation) & observation.eligible
    p = values.double().softmax(-1)
    return chosen, p[..., :-1].amax(-1), torch.special.entr(p).sum(-1)


def rows(values, masked):
    for row in range(len(values)):
        yield row, [i for i in range(values.shape[1]) if masked[row, i]]


@given(observations(), st.floats(0.0, 0.9))
def test_frechet_is_its_formula(data, delta):
    values, masked = data
    chosen, c, _ = picked(Frechet(delta=delta), values, masked)
    for row, open_ in rows(values, masked):
        ordered = sorted((float(c[row, i]) for i in open_), reverse=True)
        gaps = [sum(ordered[:n]) - (n - 1) - (1 - ordered[n - 1]) for n in range(1, len(ordered) + 1)]
        assume(all(abs(gap - delta) > BAND for gap in gaps))
        assert chosen[row].sum() == max(sum(gap > delta for gap in gaps), 1)


@given(st.floats(0.05, 0.999), st.integers(1, 12), st.floats(0.01, 0.99))
def test_frechet_equals_factor_at_equal_confidences(confidence, width, delta):
    rest = (1 - confidence) / 3
    values = torch.tensor([confidence, rest, rest, rest]).log().expand(1, width, 4).contiguous()
    if confidence < rest:
        return
    bound = [(n + 1) * (1 - confidence) - (1 - delta) for n in range(1, width + 1)]
    assume(all(abs(x) > 1e-4 for x in bound))
    masked = torch.ones(1, width, dtype=torch.bool)
    first, _, _ = picked(Frechet(delta=delta), values, masked)
    second, _, _ = picked(Factor(factor=1 - delta), values, masked)
    assert max(int(second.sum()), 1) == int(first.sum())


@given(observations(), st.floats(0.0, 2.0))
def test_entropy_bound_is_its_formula(data, gamma):
    values, masked = data
    chosen, _, entropy = picked(EntropyBound(gamma=gamma), values, masked)
    for row, open_ in rows(values, masked):
        ordered = sorted(float(entropy[row, i]) for i in open_)
        bounds = [sum(ordered[:k]) - max(ordered[:k]) for k in range(1, len(ordered) + 1)]
        assume(all(abs(bound - gamma) > BAND for bound in bounds[1:]))
        largest = max([k for k, bound in enumerate(bounds, 1) if bound <= gamma], default=1)
        assert chosen[row].sum() == largest


@given(observations())
def test_entropy_bound_0_is_one_token_where_entropies_are_positive(data):
    values, masked = data
    chosen, _, entropy = picked(EntropyBound(gamma=0), values, masked)
    assume((entropy > 1e-3).all())
    assert (chosen.sum(1) == 1).all()


@given(observations(), st.floats(0.0, 2.5))
def test_entropy_threshold_is_its_formula(data, threshold):
    values, masked = data
    chosen, _, entropy = picked(EntropyThreshold(threshold=threshold), values, masked)
    for row, open_ in rows(values, masked):
        assume(all(abs(float(entropy[row, i]) - threshold) > BAND for i in open_))
        wanted = {i for i in open_ if entropy[row, i] <= threshold}
        got = set(chosen[row].nonzero()[:, 0].tolist())
        if wanted:
            assert got == wanted
        else:
            (one,) = got
            assert entropy[row, one] <= min(float(entropy[row, i]) for i in open_) + BAND


@given(observations(), st.floats(0.3, 1.0), st.floats(0.1, 1.0), st.integers(0, 5))
def test_local_leap_is_its_formula(data, threshold, relaxed, radius):
    values, masked = data
    relaxed = min(relaxed, threshold)
    policy = LocalLeap(threshold=threshold, relaxed_threshold=relaxed, radius=radius)
    chosen, c, _ = picked(policy, values, masked)
    for row, open_ in rows(values, masked):
        assume(all(min(abs(float(c[row, i]) - t) for t in (threshold, relaxed)) > BAND for i in open_))
        anchors = {i for i in open_ if c[row, i] >= threshold}
        near = {i for i in open_ if c[row, i] >= relaxed and any(abs(i - a) <= radius for a in anchors)}
        assert set(chosen[row].nonzero()[:, 0].tolist()) == anchors | near


@given(observations(), st.floats(0.1, 1.0))
def test_local_leap_with_one_threshold_is_the_threshold(data, threshold):
    values, masked = data
    chosen, _, _ = picked(LocalLeap(threshold=threshold, relaxed_threshold=threshold), values, masked)
    _, observation = observe(values, masked=masked)
    assert torch.equal(chosen, (observation.log_confidence >= math.log(threshold)) & masked)


@given(observations(), st.floats(0.3, 1.0), st.floats(0.0, 0.6))
def test_hierarchy_is_its_formula(data, threshold, low):
    values, masked = data
    low = min(low, threshold)
    chosen, c, _ = picked(Hierarchy(threshold=threshold, low_threshold=low), values, masked)
    for row, open_ in rows(values, masked):
        scores = [float(c[row, i]) for i in open_]
        assume(all(min(abs(x - threshold), abs(x - low)) > BAND for x in scores))
        assume(len(set(scores)) == len(scores))
        assume(all(abs(a - b) > BAND for k, a in enumerate(scores) for b in scores[k + 1 :]))
        runs, last = [], None
        for i in open_:
            if last is None or i != last + 1:
                runs.append([])
            runs[-1].append(i)
            last = i
        best = {max(run, key=lambda i: float(c[row, i])) for run in runs}
        wanted = {i for i in best if c[row, i] > low} | {i for i in open_ if c[row, i] > threshold}
        wanted = wanted or {max(open_, key=lambda i: float(c[row, i]))}
        assert set(chosen[row].nonzero()[:, 0].tolist()) == wanted


@given(observations(), st.floats(0.2, 1.0), st.floats(0.0, 0.9))
def test_dynamic_threshold_is_its_formula_over_the_region(data, threshold, alpha):
    values, masked = data
    policy = DynamicThreshold(threshold=threshold, alpha=alpha, window=0, tail=0)
    chosen, c, _ = picked(policy, values, masked)
    for row, open_ in rows(values, masked):
        tau = threshold * (1 - alpha * (1 - len(open_) / values.shape[1]))
        assume(all(abs(float(c[row, i]) - tau) > BAND for i in open_))
        assert set(chosen[row].nonzero()[:, 0].tolist()) == {i for i in open_ if c[row, i] >= tau}


# Caches that are another one at an end of their range ------------------------------------------------


def decoded(cache, model=None, **more):
    settings = {
        "unmasking": {"name": "fixed_k", "k": 2},
        "schedule": {"name": "fixed_blocks", "block_length": 8},
        "batch_size": 3,
        **more,
    }
    return Sampler(model or tiny_model(), cache=cache, **settings).generate(prompts_of([4, 9, 7]), 24)


@pytest.mark.parametrize(
    ("cache", "other"),
    [
        ({"name": "windowed", "left": 500, "right": None}, "none"),
        ({"name": "windowed", "left": 0, "right": 0}, "dual"),
        ({"name": "windowed", "left": 0, "right": None}, "prefix"),
        ({"name": "interval", "policy": "windowed", "interval": 1}, "none"),
        ({"name": "warmup", "policy": "dual", "forwards": 99}, "none"),
        ({"name": "commit_refresh", "policy": "dual", "commits": 1}, "none"),
        ({"name": "commit_refresh", "policy": "dual", "commits": 99}, "dual"),
        ({"name": "delayed", "interval": 1}, "none"),
        ({"name": "suffix_window", "policy": "none", "window": 500}, "none"),
        ({"name": "suffix_window", "policy": "dual", "window": 500}, "dual"),
        ({"name": "suffix_window", "policy": "prefix", "window": 500, "tail": 0}, "prefix"),
        ({"name": "entropy_refresh", "threshold": 0.0, "recent": 0}, "none"),
    ],
)
def test_at_the_end_of_its_range_a_cache_is_another_one(cache, other):
    mine, reference = decoded(cache), decoded(other)
    assert torch.equal(mine.sequences, reference.sequences)
    assert torch.equal(mine.forward_of_position, reference.forward_of_position)


def test_a_narrow_suffix_costs_fewer_rows_and_says_so():
    wide = decoded("dual")
    narrow = decoded({"name": "suffix_window", "policy": "dual", "window": 2, "tail": 1})
    assert narrow.positions_computed < wide.positions_computed
    assert narrow.refreshes == wide.refreshes
    assert not torch.equal(narrow.confidence, wide.confidence)  # what is hidden is missed


def test_what_was_never_computed_is_never_seen():
    class Half(CachePolicy):
        """The block and what precedes it, with everything declared visible."""

        name: ClassVar[str] = "half"

        def plan_forward(self, state, region):
            everything = torch.ones_like(state.valid)
            return ForwardPlan.between(state, 0, region.span.stop, visible=everything)

    class Seen(Half):
        """The same with only that declared visible."""

        name: ClassVar[str] = "seen"

        def plan_forward(self, state, region):
            inside = state.columns < region.span.stop
            return ForwardPlan.between(state, 0, region.span.stop, visible=inside.expand_as(state.valid))

    assert torch.equal(decoded(Half()).confidence, decoded(Seen()).confidence)


def test_a_refresh_by_commits_is_the_rows_own():
    """A row refreshes after its own commits, whatever its batch mates do."""
    cache = {"name": "commit_refresh", "commits": 5, "policy": {"name": "windowed", "left": 1, "right": 1}}
    rule = {"name": "confidence_threshold", "threshold": 0.35}
    prompts = prompts_of([4, 9, 7])
    settings = {"unmasking": rule, "cache": cache, "schedule": {"name": "sliding", "block_length": 8}}
    together = Sampler(tiny_model(), batch_size=3, **settings).generate(prompts, 24)
    assert len(set(together.row_refreshes.tolist())) > 1 or together.row_refreshes[0] > 1
    for row, prompt in enumerate(prompts):
        alone = Sampler(tiny_model(), batch_size=1, **settings).generate([prompt], 24, places=[row])
        assert torch.equal(alone.sequences[0, -24:], together.sequences[row, -24:])
        assert alone.row_refreshes[0] == together.row_refreshes[row]


# Further canvases, and integers by the read-back ----------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_guidance_reads_a_canvas_without_the_prompt(cache):
    model = tiny_model()
    guided = decoded(cache, transforms=[{"name": "classifier_free_guidance", "scale": 1.5}])
    plain = decoded(cache)
    assert guided.positions_computed % 2 == 0
    assert not torch.equal(guided.sequences, plain.sequences)
    run = Sampler(
        model, cache=cache, transforms=[{"name": "classifier_free_guidance", "scale": 1.5}], batch_size=1
    ).steps(prompts_of([6]), 16)
    step = next(run)
    tokens = step.state.tokens.clone()
    tokens[:, :6] = model.facts.mask_token_id
    ids = torch.arange(tokens.shape[1])[None]
    columns = torch.arange(6, 22)
    with torch.no_grad():
        without = model.logits(tokens, ids, None, None, columns)
        given = model.logits(step.state.tokens, ids, None, None, columns)
    assert torch.allclose(step.observation.branches["unconditional"], without, atol=1e-4)
    assert torch.allclose(step.observation.logits, without + 2.5 * (given - without), atol=1e-3)


class Branch(LogitsTransform):
    """A further canvas, and nothing done with it."""

    name: ClassVar[str] = "branch"
    until: int = 10**6

    def canvases(self, state, plan):
        return {"other": state.tokens} if state.forward_index < self.until else {}

    def transform(self, state, observation):
        return observation.logits


def test_two_canvases_of_one_name_are_an_error():
    with pytest.raises(PluginError, match="'other'"):
        decoded("none", transforms=[Branch(), Branch()])


def test_canvases_come_and_go_only_where_nothing_is_stored():
    decoded("none", transforms=[Branch(until=3)])
    with pytest.raises(PluginError, match="must stay the same"):
        decoded("dual", transforms=[Branch(until=3)])


def test_carried_integers_follow_their_rows():
    class Carrying(LogitsTransform):
        """Carries the row's place in the batch it began in, and what it carried last."""

        name: ClassVar[str] = "carrying"

        def transform(self, state, observation):
            was = state.carried(self)
            if was is not None:
                assert [first for first, _ in was] == state.rows
            numbers = state.on_device([[row, 10 * row] for row in state.rows])
            state.carry(self, numbers)
            return observation.logits

    model = ChosenModel(
        lambda tokens, ids: torch.nn.functional.one_hot(tokens.sum(1, keepdim=True) % 7 + ids * 0, 12) * 9.0,
        12,
    )
    Sampler(model, transforms=[Carrying()], batch_size=4).generate([[1], [2, 3], [4], [5]], 16)


def test_a_stranger_may_not_carry():
    state, _ = observe(torch.zeros(1, 3, 5))
    with pytest.raises(DecodingError, match="not part of this run"):
        state.carry(Factor(), torch.zeros(1, 1))


@given(st.integers(0, 2**31))
def test_realigned_is_a_lookup_by_position(seed):
    generator = torch.Generator().manual_seed(seed)
    before = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(2)])
    now = torch.stack([torch.randperm(12, generator=generator)[:7] for _ in range(2)])
    now[0, 2] = before[1, 3] = -1
    values = torch.rand(2, 5, 3, generator=generator)
    found = realigned(values, before, now, -7.0)
    for row in range(2):
        where = {int(p): values[row, i] for i, p in enumerate(before[row]) if p >= 0}
        for i, p in enumerate(now[row].tolist()):
            expected = where.get(p, torch.full((3,), -7.0)) if p >= 0 else torch.full((3,), -7.0)
            assert torch.equal(found[row, i], expected)


# Guards, tables, schedules on the bundled model ------------------------------------------------------


def test_eos_guard_leaves_no_gap_before_the_end():
    """With it an end of sequence is never committed before what stands to its left."""
    model = load_model()
    prompts = ["Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?"]
    ends = torch.tensor(model.facts.eos_token_ids)

    def early(wrappers):
        run = Sampler(
            model, unmasking={"name": "fixed_k", "k": 1}, wrappers=wrappers, stop_at_eos=False
        ).steps(prompts, 64)
        found = 0
        for step in run:
            commit = step.decision.commit & step.observation.eligible
            is_end = torch.isin(step.observation.tokens, ends) & commit
            open_before = step.state.masked.long().cumsum(1) - step.state.masked.long()
            found += int((is_end & (open_before[:, step.region.span] > 0)).sum())
        return found

    assert early([]) > 0
    assert early(["eos_guard"]) == 0


def test_suppressed_tokens_are_never_written():
    model = load_model()
    prompt = "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?"
    result = Sampler(model, transforms=[{"name": "suppress_tokens", "tokens": ["eos", 5]}]).generate(
        prompt, 32
    )
    assert not torch.isin(result.sequences[0, -32:], torch.tensor([*model.facts.eos_token_ids, 5])).any()


def test_a_token_text_that_is_not_one_token_is_refused():
    with pytest.raises(ConfigurationError, match="tokens, not one"):
        Sampler(load_model(), transforms=[{"name": "suppress_tokens", "tokens": ["pens and more"]}]).generate(
            "x", 8
        )


def test_frequencies_are_counted_by_the_command_line(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("27+5=32 pens\n27-5=22 pens\n")
    table = tmp_path / "table.json"
    command = [sys.executable, "-m", "dllm_sampling.cli", "frequencies"]
    subprocess.run([*command, str(text), "-o", str(table)], check=True, capture_output=True)
    found = json.loads(table.read_text())
    tokenizer = load_model().tokenizer
    ids = [i for line in text.read_text().splitlines() for i in tokenizer(line)["input_ids"]]
    assert found["num_token"] == len(ids)
    assert {int(k): v for k, v in found["p_baseline_dict"].items()} == {i: ids.count(i) for i in set(ids)}
    result = Sampler(
        load_model(),
        unmasking={"name": "fixed_k", "score": {"name": "pc_sampler", "frequencies": str(table)}},
    )
    assert result.generate("Mia has 27 pens. Mia buys 5. How many pens?", 16).forwards <= 16
    failed = subprocess.run(
        [*command, "no_such_task", "-o", str(tmp_path / "x")], check=False, capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert "word_problems" in failed.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no table"),
        ("[1]", "no table"),
        ('{"num_token": 5, "p_baseline_dict": {"900000": 1}}', "another tokenizer"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, content, message):
    path = tmp_path / "table.json"
    path.write_text(content)
    score = {"name": "pc_sampler", "frequencies": str(path)}
    with pytest.raises(ConfigurationError, match=message):
        Sampler(load_model(), unmasking={"name": "fixed_k", "score": score}).generate("x", 8)


def test_adablock_cuts_where_the_delimiter_is_surest():
    """A delimiter at the sixth target ends the first block; where none is sure the length decides."""
    vocabulary = 9

    def predict(tokens, position_ids):
        values = torch.nn.functional.one_hot(position_ids % 3, vocabulary).float() * 6
        values[position_ids == 6] = torch.nn.functional.one_hot(torch.tensor(5), vocabulary).float() * 8
        return values

    schedule = {"name": "adablock", "block_length": 4, "delimiters": [5], "share": 0.5}
    run = Sampler(ChosenModel(predict, vocabulary), schedule=schedule, stop_at_eos=False).steps([[1]], 16)
    blocks = {}
    for step in run:
        inside = step.observation.eligible[0]
        block = int(step.region.blocks.max())
        columns = step.region.positions.columns[0][inside].tolist()
        blocks.setdefault(block, []).extend(columns)
    assert max(blocks[0]) == 6
    assert (min(blocks[1]), max(blocks[1])) == (7, 10)


@pytest.mark.parametrize(
    "cache",
    [
        {
            "name": "commit_refresh",
            "commits": 5,
            "policy": {
                "name": "interval",
                "interval": 4,
                "policy": {"name": "windowed", "left": 1, "right": 1},
            },
        },
        {
            "name": "interval",
            "interval": 4,
            "policy": {"name": "commit_refresh", "commits": 5, "policy": {"name": "trailing", "left": 1}},
        },
        {
            "name": "warmup",
            "forwards": 3,
            "policy": {"name": "commit_refresh", "commits": 4, "policy": "delayed"},
        },
        {
            "name": "commit_refresh",
            "commits": 4,
            "policy": {"name": "suffix_window", "window": 4, "policy": "dual"},
        },
        {
            "name": "suffix_window",
            "window": 4,
            "policy": {"name": "commit_refresh", "commits": 4, "policy": "trailing"},
        },
    ],
)
def test_refreshes_by_forwards_do_not_follow_another_rows_commits(cache):
    rule = {"name": "confidence_threshold", "threshold": 0.35}
    settings = {"unmasking": rule, "cache": cache, "schedule": {"name": "sliding", "block_length": 8}}
    prompts = prompts_of([4, 9, 7])
    together = Sampler(tiny_model(), batch_size=3, **settings).generate(prompts, 24)
    for row, prompt in enumerate(prompts):
        alone = Sampler(tiny_model(), batch_size=1, **settings).generate([prompt], 24, places=[row])
        assert torch.equal(alone.sequences[0, -24:], together.sequences[row, -24:])
        assert alone.row_refreshes[0] == together.row_refreshes[row]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "unmasking",
            {"name": "early_commit", "policy": "fixed_k", "answer_length": 3},
            "without answer_start",
        ),
        ("unmasking", {"name": "sched", "policy": "fixed_k", "tau_k": 2.0}, "on schedule='cosine'"),
        ("cache", {"name": "suffix_window", "policy": "dual", "scale": 3.0}, "without decay"),
    ],
)
def test_a_setting_without_effect_is_refused(kind, settings, message):
    with pytest.raises(ConfigurationError, match=f"has no effect {message}"):
        Sampler(tiny_model(), **{kind: settings})


@pytest.mark.parametrize("name", ["early_commit", "sched"])
def test_what_a_held_policy_decides_besides_is_kept(name):
    """Rows that it ends are ended, though the rule around it adds commits of its own."""

    class Ending(UnmaskingPolicy):
        """One position, and the end of every row in its third forward."""

        name: ClassVar[str] = "ending"

        def select(self, state, observation):
            end = torch.full_like(observation.masked[:, 0], state.forward_index == 2)
            return Decision(top_k(observation.log_confidence, observation.eligible, 1), finish=end)

    held = {"early_commit": EarlyCommit(policy=Ending(), gaps=(1e9, 1e9, 1e9)),
            "sched": SchED(policy=Ending(), tau_high=1e9, tau_low=1e9)}[name]  # fmt: skip
    assert Sampler(tiny_model(), unmasking=held).generate(prompts_of([4, 9]), 24).forwards == 3


@pytest.mark.parametrize("settings", [{"window": 0, "tail": 0}, {"window": 1, "tail": 0, "decay": 2.0}])
@pytest.mark.parametrize("inner", ["none", "prefix", "dual", {"name": "interval", "policy": "dual"}])
def test_given_text_between_and_behind_the_targets_is_never_taken_for_suffix(settings, inner):
    """Only open targets behind the region are suffix: a canvas to fill in holds text there too."""
    canvases = [[7] * 16, [9] * 11]
    targets = [[column in (2, 3, 8, 13) for column in range(16)], [column in (1, 9) for column in range(11)]]
    sampler = Sampler(
        tiny_model(), cache={"name": "suffix_window", "policy": inner, **settings}, unmasking="fixed_k",
        schedule={"name": "fixed_blocks", "block_length": 4},
    )  # fmt: skip
    seen = []

    class Watch(CachePolicy):
        """Notes what another cache policy lets a forward see."""

        name: ClassVar[str] = "watch"
        policy: NestedCachePolicy

        def plan_forward(self, state, region):
            plan = self.policy.plan_forward(state, region)
            given = state.valid & ~state.targets
            assert bool((plan.visible | ~given).all())
            behind = state.columns > (region.positions.end() - 1)
            seen.append(int((behind & state.masked & plan.visible).sum()))
            return plan

    settings = {**sampler.config, "cache": Watch(policy=sampler.settings.cache)}
    Sampler(tiny_model(), **settings).infill(canvases, targets)
    assert len(seen) >= 4
    assert max(seen) <= settings["cache"].policy.window * 2


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "sliding", "block_length": 2},
        {"name": "sliding", "block_length": 3, "longest": 3},
        {"name": "multi_block", "block_length": 2, "add": 0.5},
        {"name": "adablock", "block_length": 2, "delimiters": [5, 9]},
        {"name": "fixed_blocks", "block_length": 3},
        "whole_canvas",
    ],
)
def test_gaps_between_targets_are_passed_over(schedule):
    """Long given stretches, of different lengths in the rows, leave no region without an open target."""
    generator = torch.Generator().manual_seed(3)
    canvases = [torch.randint(0, 60, (n,), generator=generator).tolist() for n in (30, 12, 21)]
    targets = [
        [c in wanted for c in range(len(row))]
        for row, wanted in zip(canvases, ((1, 28), (0, 5, 11), (20,)), strict=True)
    ]
    sampler = Sampler(tiny_model(), schedule=schedule, unmasking="fixed_k", stop_at_eos=False)
    result = sampler.infill(canvases, targets)
    assert int(result.row_forwards.sum()) <= 6
    for row, (canvas, marks) in enumerate(zip(canvases, targets, strict=True)):
        mark = torch.tensor(marks)
        assert bool((result.forward_of_position[row, : len(mark)][mark] >= 0).all())
        assert torch.equal(result.sequences[row, : len(mark)][~mark], torch.tensor(canvas)[~mark])


def test_sliding_offers_so_many_open_targets_wherever_they_are():
    canvas = [[7] * 20]
    targets = [[column % 3 == 1 for column in range(20)]]
    sampler = Sampler(tiny_model(), schedule={"name": "sliding", "block_length": 2}, unmasking="fixed_k")
    opened = []

    class Watch(Observer):
        """Notes how many open targets each region held."""

        name: ClassVar[str] = "watch"

        def committed(self, state, observation, decision):
            opened.append(int(observation.masked.sum()))

    Sampler(tiny_model(), **{**sampler.config, "observers": [Watch()], "stop_at_eos": False}).infill(
        canvas, targets
    )
    assert opened == [2] * 6 + [1]
