"""Everything that ships, through the suite that strategy authors use."""

from __future__ import annotations

import json

import pytest

from dllm_sampling import registry
from dllm_sampling.backbones.dream import Dream
from dllm_sampling.backbones.llada import LLaDA
from dllm_sampling.bundled.file_task import FileTask
from dllm_sampling.bundled.word_problems import WordProblems
from dllm_sampling.loading import load_tokenizer
from dllm_sampling.plugins.nested import resolve
from dllm_sampling.testing import (
    BackboneConformance,
    BlockScheduleConformance,
    CachePolicyConformance,
    LogitsTransformConformance,
    ScoreConformance,
    TaskConformance,
    UnmaskingPolicyConformance,
    WrapperConformance,
)
from tests.folders import FAMILIES
from tests.models import tiny

# Policies that need arguments, or more than one set of them.
VARIANTS = {
    "confidence_threshold": [{}, {"threshold": 0.3}, {"threshold": 0.3, "score": "random"}],
    "fixed_k": [{"k": 3}, {"steps": 9, "score": "entropy"}],
    "factor": [{}, {"score": "margin"}],
    "dream_schedule": [{"steps": 12}, {"steps": 30, "alg": "origin"}, {"steps": 9, "alg_temp": 0.5}],
    "entropy_bound": [{}, {"gamma": 0.5, "score": "confidence"}, {"score": "left_to_right"}],
    "klass": [{"threshold": 0.2, "kl_threshold": 5.0, "history": 1}],
    "early_commit": [{"policy": "fixed_k", "gaps": [3.0, 2.0, 1.0]}, {"policy": "saber", "answer_start": 9}],
    "sched": [{"policy": "fixed_k", "tau_high": 3.0, "tau_low": 1.0}, {"policy": "fixed_k", "stable": False, "steps": 20}],
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
# Their windows move on without starting a block: nothing is refreshed after the first forward.
MOVE_ON = ("multi_block", "sliding")


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


def conformance(suite, kind, only=None, without=()):
    """The suite's class, once for every policy of its kind."""
    chosen = [v for v in variants(kind) if v.values[0] not in without and v.values[0] in (only or v.values)]

    @pytest.mark.parametrize(("name", "given"), chosen)
    class Test(suite):
        @pytest.fixture
        def policy(self, name, given, tmp_path):
            return built(suite.kind, name, given, tmp_path)

    Test.__name__ = Test.__qualname__ = suite.__name__
    return Test


TestUnmasking = conformance(UnmaskingPolicyConformance, "unmasking")
TestScores = conformance(ScoreConformance, "score")
TestCaches = conformance(CachePolicyConformance, "cache")
TestSchedules = conformance(BlockScheduleConformance, "schedule", without=MOVE_ON)


class TestSchedulesThatMoveOn(conformance(BlockScheduleConformance, "schedule", only=MOVE_ON)):
    starts_blocks = False


TestTransforms = conformance(LogitsTransformConformance, "transforms")


@pytest.mark.parametrize("name", ["eos_guard", "fast_dllm_dream"])
class TestWrappers(WrapperConformance):
    @pytest.fixture
    def policy(self, name):
        return resolve(self.kind, name)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in FAMILIES.items()}


class TestLLaDA(BackboneConformance):
    family = LLaDA

    @pytest.fixture
    def checkpoint(self, checkpoints):
        return checkpoints["llada"]


class TestDream(BackboneConformance):
    family = Dream

    @pytest.fixture
    def checkpoint(self, checkpoints):
        return checkpoints["dream"]


class TestWordProblems(TaskConformance):
    @pytest.fixture
    def task(self):
        return WordProblems()

    @pytest.fixture
    def tokenizer(self):
        return load_tokenizer()

    def right(self, example):
        return f"1 + 1 = 2 #### {example.answer}"


class TestFileTask(TaskConformance):
    @pytest.fixture
    def task(self, tmp_path):
        lines = [json.dumps({"q": f"What is {n} + {n}?", "a": str(2 * n)}) + "\n" for n in range(9)]
        (tmp_path / "sums.jsonl").write_text("".join(lines))
        return FileTask(path=str(tmp_path / "sums.jsonl"), prompt="{{ q }}", answer="{{ a }}", gen_length=8)


class TestWithATokenizer(LogitsTransformConformance):
    """A policy that needs the ids of texts."""

    @pytest.fixture
    def policy(self):
        return resolve(self.kind, {"name": "suppress_tokens", "tokens": ["#"]})

    @pytest.fixture
    def tokenizer(self):
        return load_tokenizer()

    def test_the_models_have_its_ids(self, model, predicted, tokenizer):
        for facts in (model.facts, predicted("hashed").facts):
            assert facts.tokenizer is tokenizer
            assert tokenizer.eos_token_id in facts.eos_token_ids
            assert facts.mask_token_id == tokenizer.mask_token_id
            assert not facts.allowed[facts.mask_token_id]


class TestOnAnotherModel(CachePolicyConformance):
    """The shift of Dream, whose rows predict the position after them."""

    @pytest.fixture
    def policy(self):
        return resolve(self.kind, "dual")

    @pytest.fixture
    def model(self):
        return tiny("dream")
