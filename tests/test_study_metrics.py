"""The numbers of a study: against slow, obvious versions, and against theory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling.study import metrics
from dllm_sampling.study.metrics import METRICS, Estimate, Row
from dllm_sampling.study.plots import pareto_front
from dllm_sampling.study.results import Results
from tests import recompute_study
from tests.study_files import small

DIFFERENCE = next(m for m in METRICS if m.name == "accuracy_difference")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    samplers = [
        {"name": "one at a time", "unmasking": "fixed_k", "cache": "dual"},
        {
            "name": "{cache}, threshold {threshold}",
            "unmasking": "confidence_threshold",
            "product": {"cache": ["dual", "none"], "unmasking.threshold": [0.5, 0.9]},
        },
    ]
    return small(limit=12, samplers=samplers).run(tmp_path_factory.mktemp("metrics"))


def test_every_reported_number_is_recomputed_from_the_records_by_another_program(results):
    from dllm_sampling.study import report

    report.write(results)
    assert list(recompute_study.differences(results.folder.path)) == []


def test_the_other_program_would_notice(results, tmp_path):
    import shutil

    shutil.copytree(results.folder.path, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "results.csv").read_text()
    value = str(results.rows[2].estimates["tokens_per_forward"].value)
    assert value in text
    (tmp_path / "results.csv").write_text(text.replace(value, str(float(value) * 1.001)))
    assert any("tokens_per_forward" in line for line in recompute_study.differences(tmp_path))


@given(st.lists(st.tuples(st.floats(0.5, 20), st.floats(1, 100)), min_size=1, max_size=6), st.floats(50, 100))
def test_aup_is_its_definition(points, y_max):
    rho, y = (np.array(column) for column in zip(*points, strict=True))
    if len(set(rho)) == len(rho):
        assert math.isclose(
            float(metrics.aup(rho, y, y_max)), recompute_study.aup(points, y_max), rel_tol=1e-9
        )


def test_aup_of_the_published_figures():
    # Two points on the same accuracy: y_max keeps all their weight, so AUP is rho times y.
    assert float(metrics.aup(np.array([1.0, 2.77]), np.array([74.68, 74.68]), 74.68)) == pytest.approx(
        2.77 * 74.68
    )
    # A point that lost more than five percent is as good as not there.
    assert float(metrics.aup(np.array([1.0, 9.0]), np.array([80.0, 74.9]), 80.0)) == 80.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_exact_test(pairs):
    first, second = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    assert math.isclose(
        metrics.mcnemar(first, second), recompute_study.mcnemar(first.tolist(), second.tolist()), rel_tol=1e-9
    )


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_adjusted_is_benjamini_and_hochbergs(p_values):
    assert metrics.adjusted(p_values) == pytest.approx(recompute_study.adjusted(p_values))


@settings(max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=4))
def test_the_interval_is_that_of_all_resamples_where_all_can_be_listed(values):
    data = np.array(values, dtype=float)
    (found,) = metrics.bootstrapped(len(data), lambda index: data[index].mean(-1)[None])
    means = sorted(np.mean(chosen) for chosen in itertools.product(values, repeat=len(values)))
    # The true percentiles lie on a lattice, and a sampled one on the same step or the next.
    step = max(values) / len(values) + 1e-9
    assert abs(found.low - np.quantile(means, 0.025)) <= step
    assert abs(found.high - np.quantile(means, 0.975)) <= step
    assert found.value == data.mean()


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    """Coverage of a ratio of sums of dependent counts, over 300 worlds: 95 % within chance and small bias."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        forwards = generator.integers(4, 20, 60).astype(float)
        tokens = forwards * 3 + generator.normal(0, 4, 60)
        (found,) = metrics.bootstrapped(
            60, lambda index, t=tokens, f=forwards: (t[index].sum(-1) / f[index].sum(-1))[None]
        )
        held += found.low <= 3 <= found.high
    assert 270 <= held <= 297  # 0.9 to 0.99; a percentile interval is a little short at n = 60


def test_pairing_narrows_the_interval_of_a_difference(results):
    row = next(r for r in results.rows if not r.is_baseline)
    base = results.rows[0]
    paired = row.estimates["accuracy_difference"]
    apart = row.estimates["accuracy"], base.estimates["accuracy"]
    assert paired.value == pytest.approx(apart[0].value - apart[1].value)
    widths = [e.high - e.low for e in apart]
    assert paired.high - paired.low <= math.hypot(*widths) + 1e-9


def test_one_prompt_has_no_interval(tmp_path):
    results = small(limit=1).run(tmp_path)
    estimate = results.rows[1].estimates["accuracy"]
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert results.rows[1].verdict(DIFFERENCE) == metrics.NO_DIFFERENCE


@pytest.mark.parametrize(
    ("low", "high", "value", "p", "verdict"),
    [
        (-0.1, -0.02, -0.05, 0.01, "worse"),
        (0.01, 0.1, 0.05, 0.03, "better"),
        (-0.1, 0.0, -0.05, 0.01, metrics.NO_DIFFERENCE),
        (-0.1, 0.1, 0.0, 1.0, metrics.NO_DIFFERENCE),
        (-0.1, -0.02, -0.05, 0.13, metrics.NO_DIFFERENCE),
    ],
)
def test_a_difference_is_only_said_where_it_is_shown(low, high, value, p, verdict, results):
    row = Row("m", "t", "s", False, {}, 0, {}, (0,), results.rows[0].columns, p_value=p)
    row.estimates["accuracy_difference"] = Estimate(value, low, high)
    assert row.verdict(DIFFERENCE) == verdict


def test_a_sampler_compared_with_itself_is_the_same(tmp_path):
    twin = {"name": "twin", "unmasking": {"name": "fixed_k", "k": 2}, "cache": "dual", "batch_size": 3}
    from tests.study_files import SMALL

    results = small(limit=6, samplers=[SMALL["samplers"][0], twin]).run(tmp_path)
    estimates = results.rows[1].estimates
    assert estimates["agreement"] == Estimate(1.0, 1.0, 1.0)
    assert estimates["edit_distance"] == Estimate(0.0, 0.0, 0.0)
    assert estimates["accuracy_difference"] == Estimate(0.0, 0.0, 0.0)
    assert results.rows[1].p_value == 1.0
    assert results.rows[1].verdict(DIFFERENCE) == metrics.NO_DIFFERENCE


def test_seeds_are_pooled_by_prompt(tmp_path):
    samplers = [
        {"name": "one at a time", "unmasking": "fixed_k", "cache": "dual", "sampling": {"temperature": 0.8}}
    ]
    results = small(limit=5, samplers=samplers, seeds=[0, 1, 2], gen_length=16).run(tmp_path)
    (row,) = results.rows
    assert row.seeds == (0, 1, 2)
    assert row.columns.prompts == 5  # not 15: seeds of one prompt are not independent
    tables = list(results.tables.values())
    assert row.columns.tokens.tolist() == [sum(t["tokens"][i].as_py() for t in tables) for i in range(5)]


def test_curves_are_the_rows_that_differ_in_one_number(results):
    found = {curve.title: (curve.parameter, [r.sampler for r in curve.rows]) for curve in results.curves}
    assert found == {
        "one at a time": (None, ["one at a time"]),
        "dual, threshold *": ("unmasking.threshold", ["dual, threshold 0.5", "dual, threshold 0.9"]),
        "none, threshold *": ("unmasking.threshold", ["none, threshold 0.5", "none, threshold 0.9"]),
    }


def test_y_max_can_be_given(tmp_path):
    task = {"name": "word_problems", "best_accuracy": 1.0}
    given = small(limit=8, tasks=[task]).run(tmp_path)
    assert given.y_max("bundled", "word_problems") == 1.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_pareto_front_is_what_nothing_beats(points):
    def beaten(p):
        return any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)

    assert pareto_front(points) == sorted({p for p in points if not beaten(p)})


def test_a_folder_can_be_read_without_the_study(results):
    again = Results(results.folder.path)
    assert again.to_dicts()[1]["sampler"] == results.to_dicts()[1]["sampler"]
    assert [r.estimates for r in again.rows] == [r.estimates for r in results.rows]  # the same resamples
