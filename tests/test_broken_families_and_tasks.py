"""For every check of the suites for families and tasks a broken one that it is the first to catch."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
import torch

from dllm_sampling.backbones.llada import LLaDA
from dllm_sampling.errors import DllmSamplingError
from dllm_sampling.testing import BackboneConformance, tiny_model
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


def logits(change):
    def changed(self, ids, position_ids, attention_mask, buffer, rows):
        return change(self, ids, position_ids, attention_mask, buffer, rows)

    return changed


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


def off_by_one(self, ids, position_ids, attention_mask, buffer, rows):
    # Where all is computed and nothing is kept, the rows are those beside the ones that were asked for.
    return plain(self, ids, position_ids, attention_mask, buffer, rows) * (1 + 0.2 * (ids.shape[1] % 5 == 0))


def facts(**changes):
    def of(self):
        from dataclasses import replace

        return replace(LLaDA._facts(self), **changes)

    return of


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
    "another family loads it": ("test_load_model_finds_it", "made a LLaDA", {"model": lambda: tiny_model()}),
    "the mask ends a text": ("test_its_ids_can_be_used", "ends a text too", {"_facts": facts(eos_token_ids=(63,))}),
    "the mask may be written": (
        "test_its_ids_can_be_used",
        "may be committed",
        {"_facts": facts(allowed=torch.ones(64).bool())},
    ),
    "it draws": ("test_equal_calls_predict_the_same", "dropout", {"logits": logits(drawn)}),
    "it attends to the left": ("test_attention_goes_both_ways", "to the left alone", {"logits": logits(to_the_left)}),
    "its rows come in another order": (
        "test_only_the_rows_asked_for_come_back",
        r"rows \[batch, n\]",
        {"logits": logits(every_row)},
    ),
    "a shift of two": ("test_its_shift_is_honoured", "it is 0 or 1", {"shift": 2}),
    "it attends to padding": ("test_padding_changes_nothing", "beside longer prompts", {"logits": logits(unmasked)}),
    "it does not read what is stored": (
        "test_stored_keys_and_values_predict_the_same",
        "from stored keys and values",
        {"logits": logits(forgetful)},
    ),
    "storing changes what it predicts": (
        "test_stored_keys_and_values_predict_the_same",
        "from stored keys",
        {"logits": logits(told_of_storing)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES)
def test_each_broken_family_is_caught_first_by_its_check(case, config):
    check, advice, space = FAMILIES[case]
    space = dict(space)
    given, made = {**config, "model_type": "broken", **space.pop("config", {})}, space.pop("model", None)
    cls = family(**space)
    suite = type("Suite", (BackboneConformance,), {"family": cls})()
    model = made() if made else cls(tiny_model().model)
    found, message = first_to_fail(suite, {"config": given, "model": model})
    assert found == check, message
    assert re.search(advice, message)
