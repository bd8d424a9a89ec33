"""Everything that ships, through the suite that strategy authors use."""

from __future__ import annotations

import json

import pytest

from dllm_sampling import registry
from dllm_sampling.plugins.nested import resolve
from dllm_sampling.testing import (
    BlockScheduleConformance,
    CachePolicyConformance,
    LogitsTransformConformance,
    ScoreConformance,
    UnmaskingPolicyConformance,
    WrapperConformance,
)

# Policies that need arguments, or more than one set of them.
VARIANTS = {
    "confidence_threshold": [{}, {"threshold": 0.3}, {"threshold": 0.3, "score": "random"}],
    "fixed_k": [{"k": 3}, {"steps": 9, "score": "entropy"}],
    "factor": [{}, {"score": "margin"}],
    "dream_schedule": [{"steps": 12}, {"steps": 30, "alg": "origin"}, {"steps": 9, "alg_temp": 0.5}],
    "entropy_bound": [{}, {"gamma": 0.5, "score": "confidence"}, {"score": "left_to_right"}],
    "klass": [{"threshold": 0.2, "kl": 5.0, "history": 1}],
    "early_commit": [{"policy": "fixed_k", "gaps": [3.0, 2.0, 1.0]}, {"policy": "saber", "answer_start": 9}],
    "sched": [{"policy": "fixed_k", "high": 3.0, "low": 1.0}, {"policy": "fixed_k", "stable": False, "steps": 20}],
    "p2": [{"steps": 12}, {"steps": 6, "eta": 2.0, "kappa": "sine"}],
    "remdm": [{"number": 2, "loops": 3}, {}],
    "first_of": [{"policies": ["klass", {"name": "fixed_k", "k": 2}]}],
    "union": [{"policies": ["klass", "local_leap"]}],
    "with_budget": [{"policy": {"name": "confidence_threshold", "threshold": 0.2}, "k": 2}],
    "interval": [{"policy": "dual", "interval": 3}],
    "windowed": [{"left": 2, "right": 3}, {"left": 0, "right": None}],
    "trailing": [{"left": 2}, {"left": 0, "right": None, "delay": 1, "prompt": False}],
    "commit_refresh": [{"policy": {"name": "trailing", "left": 2}, "commits": 5}],
    "warmup": [{"policy": "dual", "forwards": 2}],
    "delayed": [{"interval": 3}],
    "entropy_refresh": [{"recent": 4, "threshold": 0.5}],
    "suffix_window": [{"policy": "dual", "window": 4}, {"policy": "none", "window": 6, "tail": 0, "decay": 2.0}],
    "adablock": [{"block_length": 6, "delimiters": [3, 5]}],
    "sliding": [{"block_length": 6}, {"block_length": 6, "longest": 8}],
    "multi_block": [{"block_length": 5}],
    "suppress_tokens": [{"tokens": [2, 3]}, {"tokens": ["eos"]}],
    "classifier_free_guidance": [{"scale": 0.5}],
}  # fmt: skip
# A table of frequencies is a file.
NEEDS_A_TABLE = "pc_sampler"


def variants(kind):
    for name in registry().classes(kind):
        for number, given in enumerate(VARIANTS.get(name, [{}])):
            yield pytest.param(name, given, id=f"{name}-{number}")


def built(base, name, given, folder):
    if name == NEEDS_A_TABLE:
        path = folder / "table.json"
        path.write_text(json.dumps({"num_token": 100, "p_baseline_dict": {"1": 20, "4": 3}}))
        given = given | {"frequencies": str(path)}
    return resolve(base, {"name": name, **given})


def conformance(suite, kind):
    """The suite's class, once for every policy of its kind."""

    @pytest.mark.parametrize(("name", "given"), list(variants(kind)))
    class Test(suite):
        @pytest.fixture
        def policy(self, name, given, tmp_path):
            return built(suite.kind, name, given, tmp_path)

    Test.__name__ = Test.__qualname__ = suite.__name__
    return Test


TestUnmasking = conformance(UnmaskingPolicyConformance, "unmasking")
TestScores = conformance(ScoreConformance, "score")
TestCaches = conformance(CachePolicyConformance, "cache")
TestSchedules = conformance(BlockScheduleConformance, "schedule")
TestTransforms = conformance(LogitsTransformConformance, "transforms")


@pytest.mark.parametrize("name", ["eos_guard", "fast_dllm_dream"])
class TestWrappers(WrapperConformance):
    @pytest.fixture
    def policy(self, name):
        return resolve(self.kind, name)
