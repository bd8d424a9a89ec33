"""The published values: what every setting is where nothing is said, and the edges of what it may be."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from dllm_sampling import ConfigurationError, registry

# For each setting: its default, values at its edges that are taken, and values just beyond that are not.
# REQUIRED: it has none.
REQUIRED = "required"
TINY = 1e-9
SETTINGS = {
    "confidence_threshold.threshold": (0.9, [TINY, 1], [0, 1 + TINY]),
    "confidence_threshold.score": ("confidence", ["random"], ["other"]),
    "dilated.base": (2, [2, 3], [1]),
    "dilated.threshold": (0.3, [0, 1], [-TINY, 1 + TINY]),
    "dream_schedule.alg": ("entropy", ["origin", "maskgit_plus", "topk_margin"], ["other"]),
    "dream_schedule.steps": (512, [1], [0]),
    "dream_schedule.eps": (1e-3, [TINY, 1 - TINY], [0, 1]),
    "dream_schedule.alg_temp": (0.0, [0], [-TINY]),
    "dynamic_threshold.threshold": (0.9, [TINY, 1], [0, 1 + TINY]),
    "dynamic_threshold.alpha": (0.3, [0, 1 - TINY], [-TINY, 1]),
    "dynamic_threshold.window": (96, [0], [-1]),
    "dynamic_threshold.tail": (1, [0], [-1]),
    "dynamic_threshold.score": ("confidence", ["random"], ["other"]),
    "early_commit.policy": (REQUIRED, ["fixed_k"], ["dual"]),
    "early_commit.answer_start": (None, [0], [-1]),
    "early_commit.answer_length": (5, [], [0]),
    "early_commit.gaps": ((7.5, 5.0, 2.5), [(3, 2, 1)], [(2, 1)]),
    "early_commit.borders": ((0.33, 0.67), [(0.2, 0.8)], [(0.5,)]),
    "early_commit.steps": (None, [1], [0]),
    "entropy_bound.gamma": (0.01, [0], [-TINY]),
    "entropy_bound.score": ("entropy", ["confidence", "random"], ["other"]),
    "entropy_threshold.threshold": (0.5, [0], [-TINY]),
    "entropy_threshold.score": ("entropy", ["random"], ["other"]),
    "factor.factor": (1.0, [TINY, 9.0], [0]),
    "factor.score": ("confidence", ["random"], ["other"]),
    "first_of.policies": (REQUIRED, [["fixed_k"]], [[], ["dual"]]),
    "fixed_k.k": (None, [1], [0]),
    "fixed_k.steps": (None, [1], [0]),
    "fixed_k.score": ("confidence", ["margin", "entropy", {"name": "random"}], ["other", "dual"]),
    "frechet.delta": (0.25, [0, 1 - TINY], [-TINY, 1]),
    "frechet.score": ("confidence", ["random"], ["other"]),
    "hierarchy.threshold": (0.9, [1], [0, 1 + TINY]),
    "hierarchy.low_threshold": (0.4, [0], [-TINY, 1 + TINY]),
    "klass.threshold": (0.9, [0, 1 - TINY], [-TINY, 1]),
    "klass.kl_threshold": (0.01, [TINY], [0]),
    "klass.history": (2, [1], [0]),
    "local_leap.threshold": (0.9, [1], [0, 1 + TINY]),
    "local_leap.relaxed_threshold": (0.75, [TINY], [0, 1 + TINY]),
    "local_leap.radius": (4, [0], [-1]),
    "p2.steps": (256, [1], [0]),
    "p2.eta": (1.0, [0], [-TINY]),
    "p2.kappa": ("linear", ["sine", "geometric"], ["other"]),
    "pc_sampler.frequencies": (REQUIRED, [], ["no such file"]),
    "pc_sampler.decay": (0.25, [0], [-TINY]),
    "pc_sampler.alpha": (10.0, [TINY], [0]),
    "remdm.k": (1, [1], [0]),
    "remdm.number": (1, [1], [0]),
    "remdm.start": (0.875, [TINY, 1 - TINY], [0, 1]),
    "remdm.loops": (None, [0], [-1]),
    "saber.least": (2, [1], [0]),
    "saber.remask_divisor": (8, [1], [0]),
    "sched.policy": (REQUIRED, ["fixed_k"], ["dual"]),
    "sched.schedule": ("cosine", ["linear", "exponential"], ["other"]),
    "sched.tau_high": (7.5, [], [-TINY]),
    "sched.tau_low": (2.5, [0], [-TINY]),
    "sched.tau_k": (4.0, [], [0]),
    "sched.stable": (True, [False], ["perhaps"]),
    "sched.steps": (None, [2], [1]),
    "union.policies": (REQUIRED, [["fixed_k"]], [[], ["dual"]]),
    "with_budget.policy": (REQUIRED, ["fixed_k"], ["dual"]),
    "with_budget.k": (REQUIRED, [1], [0]),
    "with_budget.score": ("confidence", ["random"], ["other"]),
    "delayed.interval": (8, [1], [0]),
    "entropy_refresh.threshold": (1.0, [0], [-TINY]),
    "entropy_refresh.recent": (64, [0], [-1]),
    "interval.policy": (REQUIRED, ["dual"], ["fixed_k"]),
    "interval.interval": (8, [1], [0]),
    "suffix_window.policy": (REQUIRED, ["dual"], ["fixed_k"]),
    "suffix_window.window": (96, [0], [-1]),
    "suffix_window.tail": (1, [0], [-1]),
    "suffix_window.decay": (None, [TINY], [0]),
    "suffix_window.scale": (2.0, [], [0]),
    "commit_refresh.policy": (REQUIRED, ["dual"], ["fixed_k"]),
    "commit_refresh.commits": (32, [1], [0]),
    "trailing.left": (24, [0], [-1]),
    "trailing.right": (0, [0, None], [-1]),
    "trailing.delay": (0, [0], [-1]),
    "trailing.prompt": (True, [False], ["perhaps"]),
    "warmup.policy": (REQUIRED, ["dual"], ["fixed_k"]),
    "warmup.forwards": (4, [1], [0]),
    "windowed.left": (16, [0], [-1]),
    "windowed.right": (16, [0, None], [-1]),
    "adablock.block_length": (32, [1], [0]),
    "adablock.threshold": (0.3, [0, 1], [-TINY, 1 + TINY]),
    "adablock.share": (0.25, [TINY, 1], [0, 1 + TINY]),
    "adablock.delimiters": (("\n",), [[3]], [[]]),
    "fixed_blocks.block_length": (32, [1], [0]),
    "multi_block.block_length": (32, [1], [0]),
    "multi_block.add": (0.1, [0, 1], [-TINY, 1 + TINY]),
    "sliding.block_length": (32, [1], [0]),
    "sliding.longest": (None, [1], [0]),
    "classifier_free_guidance.scale": (1.0, [TINY], [0]),
    "credit.alpha": (0.7, [0], [-TINY]),
    "credit.beta": (0.8, [0, 1], [-TINY, 1 + TINY]),
    "credit.gamma": (0.2, [0], [-TINY]),
    "suppress_tokens.tokens": (REQUIRED, [["eos"]], [[]]),
}
# What must be given besides.
BESIDES = {
    "early_commit": {"policy": "fixed_k"},
    "first_of": {"policies": ["fixed_k"]},
    "sched": {"policy": "fixed_k"},
    "union": {"policies": ["fixed_k"]},
    "with_budget": {"policy": "fixed_k", "k": 2},
    "interval": {"policy": "dual"},
    "suffix_window": {"policy": "dual"},
    "commit_refresh": {"policy": "dual"},
    "warmup": {"policy": "dual"},
    "suppress_tokens": {"tokens": ["eos"]},
}
KINDS = ("unmasking", "score", "cache", "schedule", "transforms", "wrappers")
CLASSES = {name: found for kind in KINDS for name, found in registry().classes(kind).items()}


@pytest.fixture
def besides(tmp_path):
    """The settings without which a policy cannot be made."""
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"num_token": 10, "p_baseline_dict": {"1": 3}}))
    return BESIDES | {"pc_sampler": {"frequencies": str(table)}}


def test_every_setting_of_every_shipped_policy_is_listed_here():
    fields = {f"{name}.{field}" for name, found in CLASSES.items() for field in found.model_fields}
    assert fields == set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_has_its_published_default_and_edges(setting, besides):
    name, field = setting.split(".")
    default, taken, refused = SETTINGS[setting]
    given = besides.get(name, {})
    if default == REQUIRED:
        assert CLASSES[name].model_fields[field].is_required()
    else:
        found = getattr(CLASSES[name].model_validate(given), field)
        assert getattr(found, "name", found) == default  # a held policy by its name
    for value in taken:
        CLASSES[name].model_validate(given | {field: value})
    for value in refused:
        with pytest.raises((ValidationError, ConfigurationError)):
            CLASSES[name].model_validate(given | {field: value})
