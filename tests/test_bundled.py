"""The bundled model and its task."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dllm_sampling import Sampler, load_model, registry

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def task():
    return registry().get("task", "word_problems")()


def accuracy(model, task, unmasking, count=100):
    examples = task.examples()[:count]
    sampler = Sampler(model, unmasking=unmasking, batch_size=50)
    result = sampler.generate([e.prompt for e in examples], gen_length=task.gen_length)
    right = sum(task.is_correct(t, e) for t, e in zip(result.texts, examples, strict=True))
    return right / count, result


def test_it_answers_held_out_problems_and_loses_when_many_tokens_are_committed_blindly(model, task):
    one, _ = accuracy(model, task, {"name": "fixed_k", "k": 1})
    many, _ = accuracy(model, task, {"name": "fixed_k", "k": 8})
    assert one >= 0.9
    assert many <= one - 0.1


def test_a_threshold_is_faster_than_one_at_a_time_and_better_than_blind(model, task):
    share, result = accuracy(model, task, {"name": "confidence_threshold", "threshold": 0.9})
    blind, _ = accuracy(model, task, {"name": "fixed_k", "k": 8})
    assert result.tokens_per_forward > 1.5
    assert share > blind


def test_500_problems_ship_and_none_was_trained_on(task):
    sys.path.insert(0, str(ROOT / "training"))
    try:
        from word_problems import Problem
    finally:
        sys.path.pop(0)
    examples = task.examples()
    assert len({e.prompt for e in examples}) == 500
    assert all(Problem(e.prompt, "", e.answer).held_out for e in examples)


def test_the_checker(task):
    example = task.examples()[0]
    assert task.is_correct(f"1+1=2 pens\n#### {example.answer}", example)
    for wrong in ("", example.answer, f"#### {example.answer}1", "#### "):
        assert not task.is_correct(wrong, example)


def test_strings_go_through_the_chat_template_that_training_used(model):
    sys.path.insert(0, str(ROOT / "training"))
    try:
        from word_problems import render
    finally:
        sys.path.pop(0)
    question = "Mia has 7 pens. Mia finds 3. How many pens?"
    ids = model.tokenizer(render(question), add_special_tokens=False)["input_ids"]
    sampler = Sampler(model)
    from_text = sampler.generate(question, gen_length=16)
    from_chat = sampler.generate([[{"role": "user", "content": question}]], gen_length=16)
    from_ids = sampler.generate([ids], gen_length=16)
    assert from_text.sequences.equal(from_ids.sequences)
    assert from_chat.sequences.equal(from_ids.sequences)
    raw = sampler.generate(question, gen_length=16, chat_template=False)
    assert raw.sequences.shape[1] < from_ids.sequences.shape[1]
    assert "<|" not in from_text.texts[0]
