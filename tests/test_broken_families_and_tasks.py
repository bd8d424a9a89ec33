"""For every check of the suites for families and tasks a broken one that it is the first to catch."""

from __future__ import annotations

import inspect
import json
import re
import threading
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict, Field

from dllm_sampling import Example, Task
from dllm_sampling.backbones.llada import LLaDA
from dllm_sampling.errors import DllmSamplingError
from dllm_sampling.testing import BackboneConformance, TaskConformance, tiny_model
from tests import folders
from tests.test_broken_policies import checks

CAUGHT = (AssertionError, DllmSamplingError, pytest.fail.Exception)


def first_to_fail(suite, given):
    """The first check that fails, in the order in which pytest runs them, and its message."""
    for name in checks(type(suite)):
        method = getattr(suite, name)
        try:
            method(**{key: given[key] for key in inspect.signature(method).parameters})
        except CAUGHT as error:
            return name, str(error)
    return None, ""


# Families -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = folders.llada(tmp_path_factory.mktemp("llada"))
    return json.loads((folder / "config.json").read_text())


def family(**space):
    return type("Broken", (LLaDA,), {"name": "broken", "matches": classmethod(matches), **space})


def matches(cls, config):
    return config.get("model_type") == "broken"


def one_more(cls, config):
    config["seen"] = True
    return matches(cls, config)


def passes_over(cls, config):
    return LLaDA.stock({key: value for key, value in config.items() if not key.startswith("no_such")})


def names_groups(cls, config):
    stock, made, _ = LLaDA.stock(config)
    return stock, made, {r"(a)(b)": "c"}


plain = LLaDA.logits


def drawn(self, ids, *more):
    found = plain(self, ids, *more)
    return found + torch.rand_like(found)


def to_the_left(self, ids, position_ids, attention_mask, buffer, rows):
    causal = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()[None, None].expand(len(ids), -1, -1, -1)
    return plain(self, ids, position_ids, causal, buffer, rows)


def every_row(self, ids, position_ids, attention_mask, buffer, rows):
    found = plain(self, ids, position_ids, attention_mask, buffer, rows)
    return found if rows.ndim == 1 else found.flip(1)


def unmasked(self, ids, position_ids, attention_mask, buffer, rows):
    return plain(self, ids, position_ids, None, buffer, rows)


def forgetful(self, ids, position_ids, attention_mask, buffer, rows):
    if buffer is not None and ids.shape[1] < 12:  # a window reads nothing of what is stored
        buffer, attention_mask = None, None
    return plain(self, ids, position_ids, attention_mask, buffer, rows)


def told_of_storing(self, ids, position_ids, attention_mask, buffer, rows):
    found = plain(self, ids, position_ids, attention_mask, buffer, rows)
    return found if buffer is None or ids.shape[1] < 12 else found * 1.5


def told_of_a_buffer(self, ids, position_ids, attention_mask, buffer, rows):
    found = plain(self, ids, position_ids, attention_mask, buffer, rows)
    return found if buffer is None else found * 1.5


def wrong_in_the_end(self, ids, position_ids, attention_mask, buffer, rows):
    found = plain(self, ids, position_ids, attention_mask, buffer, rows)
    late = buffer is not None and int((ids == self.facts.mask_token_id).sum()) < 12
    return found.flip(-1) if late else found


def says(**changes):
    """A loaded model that says other facts of itself."""

    def made(cls):
        model = cls(tiny_model().model)
        return model.with_facts(replace(model.facts, **changes))

    return made


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a name that no file would spell": ("test_it_is_a_family", "lower case", {"name": "Mine!"}),
    "it takes every checkpoint": (
        "test_it_matches_its_own_checkpoints_alone",
        "matches is true of {}",
        {"matches": classmethod(lambda cls, config: True)},
    ),
    "it changes the config": (
        "test_it_matches_its_own_checkpoints_alone",
        "changed the config",
        {"matches": classmethod(one_more)},
    ),
    "it takes another family's": (
        "test_it_matches_its_own_checkpoints_alone",
        "the family llada matches",
        {"matches": LLaDA.matches, "config": {"model_type": "llada"}},
    ),
    "it renames with two groups": (
        "test_stock_says_what_computes_it",
        "one group at most",
        {"stock": classmethod(names_groups)},
    ),
    "it passes over unknown keys": (
        "test_it_refuses_what_it_does_not_know",
        "refuse_unknown",
        {"stock": classmethod(passes_over)},
    ),
    "another family loads it": ("test_load_model_finds_it", "made a LLaDA", {"model": lambda cls: tiny_model()}),
    "the mask ends a text": ("test_its_ids_can_be_used", "ends a text too", {"model": says(eos_token_ids=(63,))}),
    "the mask may be written": (
        "test_its_ids_can_be_used",
        "may be committed",
        {"model": says(allowed=torch.ones(64).bool())},
    ),
    "it draws": ("test_equal_calls_predict_the_same", "dropout", {"logits": (drawn)}),
    "it attends to the left": ("test_attention_goes_both_ways", "to the left alone", {"logits": (to_the_left)}),
    "its rows come in another order": (
        "test_only_the_rows_asked_for_come_back",
        r"rows \[batch, n\]",
        {"logits": (every_row)},
    ),
    "a shift of two": ("test_its_shift_is_honoured", "it is 0 or 1", {"shift": 2}),
    "it attends to padding": ("test_padding_changes_nothing", "beside longer prompts", {"logits": (unmasked)}),
    "it does not read what is stored": (
        "test_stored_keys_and_values_predict_the_same",
        "from stored keys and values",
        {"logits": (forgetful)},
    ),
    "storing changes what it predicts": (
        "test_stored_keys_and_values_predict_the_same",
        "from stored keys",
        {"logits": (told_of_storing)},
    ),
    "a buffer changes what it predicts": (
        "test_every_cache_begins_alike",
        "the logits of the first forward",
        {"logits": (told_of_a_buffer)},
    ),
    "stored it goes wrong in the end": ("test_it_decodes", "that of no cache", {"logits": (wrong_in_the_end)}),
}  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES)
def test_each_broken_family_is_caught_first_by_its_check(case, config):
    check, advice, space = FAMILIES[case]
    space = dict(space)
    given, made = {**config, "model_type": "broken", **space.pop("config", {})}, space.pop("model", None)
    cls = family(**space)
    suite = type("Suite", (BackboneConformance,), {"family": cls})()
    model = made(cls) if made else cls(tiny_model().model)
    found, message = first_to_fail(suite, {"config": given, "model": model})
    assert found == check, message
    assert re.search(advice, message)


def test_every_check_of_families_catches_one_first():
    assert set(checks(BackboneConformance)) == {check for check, _, _ in FAMILIES.values()}


# Tasks --------------------------------------------------------------------------------------------

SUMS = [Example(f"{n} + {n}", str(2 * n)) for n in range(1, 7)]


class Sums(Task):
    """Whole, to be broken in one way at a time."""

    name: ClassVar[str] = "sums"
    gen_length: int = Field(8)

    def examples(self):
        return list(SUMS)

    def is_correct(self, text, example):
        return text.strip() == example.answer


class Named(Sums):
    name: ClassVar[str] = "My Sums"


class Settable(Sums):
    model_config = ConfigDict(frozen=False)
    name: ClassVar[str] = "settable"


class Unwritten(Sums):
    name: ClassVar[str] = "unwritten"
    hidden: int = Field(1, exclude=True)


class Lenient(Sums):
    model_config = ConfigDict(extra="ignore")
    name: ClassVar[str] = "lenient"


class Locked(Sums):
    name: ClassVar[str] = "locked"

    def model_post_init(self, context):
        vars(self)["lock"] = threading.Lock()

    def __eq__(self, other):
        return type(self) is type(other)

    __hash__ = None


class Empty(Sums):
    name: ClassVar[str] = "empty"

    def examples(self):
        return []


class Bare(Sums):
    name: ClassVar[str] = "bare"

    def examples(self):
        return ["1 + 1"]


class Unasked(Sums):
    name: ClassVar[str] = "unasked"

    def examples(self):
        return [Example(" ", "2")]


class Messages(Sums):
    name: ClassVar[str] = "messages"

    def examples(self):
        return [Example([{"text": "1 + 1"}], "2")]


class Shuffled(Sums):
    name: ClassVar[str] = "shuffled"
    calls: ClassVar[list] = []

    def examples(self):
        self.calls.append(1)
        turn = len(self.calls) % len(SUMS)
        return [*SUMS[turn:], *SUMS[:turn]]


class Short(Sums):
    name: ClassVar[str] = "short"

    def examples(self):
        return [Example("Count to nine.", "1 2 3 4 5 6 7 8 9")]


class Strict(Sums):
    name: ClassVar[str] = "strict"

    def is_correct(self, text, example):
        return text == f"#### {example.answer}"


class Kind(Sums):
    name: ClassVar[str] = "kind"

    def is_correct(self, text, example):
        return bool(text) and example.answer in "0123456789 10 12"


class Contained(Sums):
    name: ClassVar[str] = "contained"

    def is_correct(self, text, example):
        return text in example.answer


class Vague(Sums):
    name: ClassVar[str] = "vague"

    def is_correct(self, text, example):
        return re.fullmatch(example.answer, text)


class Fragile(Sums):
    name: ClassVar[str] = "fragile"

    def is_correct(self, text, example):
        return bool(text) and text[0] in "123456789" and eval(text) == int(example.answer)


class Forgetful(Sums):
    name: ClassVar[str] = "forgetful"
    seen: ClassVar[list] = []

    def is_correct(self, text, example):
        self.seen.append(text)
        return text == example.answer and (len(self.seen) < 60 or len(self.seen) % 2 == 0)


TASKS = {
    Named: ("test_it_is_a_task", "lower case"),
    Settable: ("test_its_settings_are_frozen", "leave `frozen`"),
    Unwritten: ("test_its_settings_survive_yaml", "another task"),
    Lenient: ("test_it_refuses_unknown_settings", "leave `extra`"),
    Locked: ("test_it_travels_to_another_process", "cannot be pickled.*open files when they are read"),
    Empty: ("test_it_has_examples", "no example"),
    Bare: ("test_it_has_examples", "is not an Example"),
    Unasked: ("test_it_has_examples", "a prompt is empty"),
    Messages: ("test_it_has_examples", "role and content"),
    Shuffled: ("test_its_examples_are_always_the_same", "generator of a fixed seed"),
    Short: ("test_answers_fit_into_its_length", "a right answer alone takes 9"),
    Strict: ("test_right_answers_are_right", r"`right\(example\)`"),
    Kind: ("test_wrong_answers_are_wrong", "counts as an answer"),
    Contained: ("test_wrong_answers_are_wrong", "'' counts as an answer"),
    Vague: ("test_its_checker_answers_whatever_is_written", "it is True or False"),
    Fragile: ("test_its_checker_answers_whatever_is_written", "raised SyntaxError"),
    Forgetful: ("test_its_checker_remembers_nothing", "in another order"),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_each_broken_task_is_caught_first_by_its_check(task):
    check, advice = TASKS[task]
    given = {"hidden": 2} if task is Unwritten else {}
    found, message = first_to_fail(TaskConformance(), {"task": task(**given), "tokenizer": None})
    assert found == check, message
    assert re.search(advice, message)


def test_every_check_of_tasks_catches_one_first():
    assert set(checks(TaskConformance)) == {check for check, _ in TASKS.values()}


def test_what_they_are_made_of_passes(config):
    assert first_to_fail(TaskConformance(), {"task": Sums(), "tokenizer": None}) == (None, "")
    cls = family()
    suite = type("Suite", (BackboneConformance,), {"family": cls})()
    given = {"config": {**config, "model_type": "broken"}, "model": cls(tiny_model().model)}
    assert first_to_fail(suite, given) == (None, "")
