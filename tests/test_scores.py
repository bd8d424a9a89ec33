"""Scores: policies that rules hold, to say which positions come first."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from dllm_sampling.caches import DualCache

from dllm_sampling import ConfigurationError, ModelFacts, PluginError, Sampler, Score
from dllm_sampling.plugins.discovery import load
from tests.slow import model, prompts

RULES = [
    {"name": "confidence_threshold", "threshold": 0.1},
    {"name": "dynamic_threshold", "threshold": 0.1},
    {"name": "factor"},
    {"name": "frechet"},
    {"name": "entropy_bound"},
    {"name": "entropy_threshold"},
    {"name": "fixed_k"},
    {"name": "with_budget", "policy": "frechet", "k": 2},
]


def decoded(rule, score, **more):
    made = Sampler(model(), unmasking={**rule, "score": score}, schedule="whole_canvas", **more)
    return made.generate(prompts([2, 4, 3]), 12)


class Answers(Score):
    """Answers one kind of nonsense. Source: ours."""

    name: ClassVar[str] = "answers"
    what: str

    def score(self, state, observation):
        good = observation.log_confidence
        return {
            "text": "best",
            "none": None,
            "integers": observation.tokens,
            "narrow": good[:, :-1],
            "flat": good[0],
            "nan": torch.full_like(good, torch.nan),
        }[self.what]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("text", "'best'"),
        ("none", "None"),
        ("integers", r"a tensor torch\.int64 \[3, 12\]; it must be floats \[3, 12\] on cpu"),
        ("narrow", r"a tensor torch\.float32 \[3, 11\]"),
        ("flat", r"a tensor torch\.float32 \[12\]"),
        ("nan", "NaN at an eligible position"),
    ],
)
def test_a_bad_answer_is_refused_with_the_name_of_the_score(rule, what, said):
    with pytest.raises(PluginError, match=rf"Answers\.score answered {said}"):
        decoded(rule, Answers(what=what))


class Unlikely(Score):
    """An infinity by the candidate's id, NaN where nothing may be committed. Source: ours."""

    name: ClassVar[str] = "unlikely"

    def score(self, state, observation):
        scores = torch.where(observation.tokens % 2 == 0, -torch.inf, torch.inf)
        return scores.masked_fill(~observation.eligible, torch.nan)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["name"])
def test_what_is_not_eligible_is_not_looked_at(rule):
    result = decoded(rule, Unlikely(), stop_at_eos=False)
    assert (result.forward_of_position >= 0).all()


class Counting(Score):
    """Left to right in every other step, which it counts itself. Source: ours."""

    name: ClassVar[str] = "counting"

    def begin(self, state, facts: ModelFacts):
        state.memory(self)["steps"] = torch.zeros_like(state.row_steps)

    def score(self, state, observation):
        odd = state.memory(self)["steps"] % 2 == 1
        return observation.positions.columns * torch.where(odd, 1.0, -1.0)[:, None]

    def committed(self, state, observation, decision):
        state.memory(self)["steps"] += 1


def test_a_held_score_has_a_memory_and_its_lifecycle():
    result = decoded({"name": "fixed_k", "k": 1}, Counting(), stop_at_eos=False)
    # The first from the left, the last, the second, and so on.
    expected = [0, 2, 4, 6, 8, 10, 11, 9, 7, 5, 3, 1]
    assert result.forward_of_position.tolist() == [expected] * 3


@pytest.mark.parametrize("threshold", [0.3, 0.9999])
def test_the_order_of_a_score_is_kept_where_none_passes_if_a_budget_follows(threshold):
    policies = [
        {"name": "confidence_threshold", "threshold": threshold, "score": "left_to_right"},
        {"name": "fixed_k", "k": 1, "score": "left_to_right"},
    ]
    made = Sampler(model(), unmasking={"name": "first_of", "policies": policies}, stop_at_eos=False)
    result = made.generate(prompts([2, 4, 3]), 12)
    forwards = result.forward_of_position
    assert (forwards.diff(dim=1) >= 0).all()
    assert result.forced == 0


def test_names_are_refused_with_the_nearest_and_with_what_they_are():
    with pytest.raises(ConfigurationError, match=r"unknown score 'entropi'. Did you mean 'entropy'\?"):
        Sampler(model(), unmasking={"name": "fixed_k", "score": "entropi"})
    with pytest.raises(
        ConfigurationError, match=r"unknown unmasking policy 'pc_sampler'.*\(pc_sampler is a score"
    ):
        Sampler(model(), unmasking="pc_sampler")
    with pytest.raises(ConfigurationError, match="DualCache is a cache policy, not a score"):
        Sampler(model(), unmasking={"name": "factor", "score": DualCache()})


def test_a_plugin_offers_scores(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from typing import ClassVar\nfrom dllm_sampling import Score\n"
        "class Backwards(Score):\n"
        "    name: ClassVar[str] = 'backwards'\n"
        "    def score(self, state, observation):\n"
        "        return observation.positions.columns.float()\n"
        "def register():\n    return [Backwards]\n"
    )
    found = load("strategies,caches,mine", [str(tmp_path)], strict=True)
    assert "backwards" in found.names("score")
    result = decoded({"name": "fixed_k"}, found.get("score", "backwards")(), stop_at_eos=False)
    assert result.forward_of_position.tolist() == [list(range(11, -1, -1))] * 3
