"""For every check of the conformance suite a policy that it catches, first or alone, and says what to change."""

from __future__ import annotations

import inspect
import re

import pytest

from dllm_sampling.errors import DllmSamplingError
from dllm_sampling.testing.predictions import PREDICTIONS, predicting, tiny_with
from tests.broken_policies import FOUND, SUITES, policy


def checks(suite):
    """The names of a suite's checks in the order in which pytest runs them: inherited ones first."""
    owners = [owner for owner in reversed(suite.__mro__) if owner is not object]
    return list(dict.fromkeys(name for owner in owners for name in vars(owner) if name.startswith("test_")))


def run(suite, name, tried, distributions=tuple(PREDICTIONS)):
    """Run one check on a policy as pytest would; return what it raises."""
    given = {"policy": tried, "model": tiny_with(None), "predicted": predicting}
    method = getattr(suite(), name)
    wanted = inspect.signature(method).parameters
    for distribution in distributions if "distribution" in wanted else [None]:
        known = given | {"distribution": distribution}
        try:
            method(**{key: known[key] for key in wanted})
        except (AssertionError, DllmSamplingError, pytest.fail.Exception) as error:
            return error
    return None


# Enough to see that an earlier check does not catch it.
QUICK = ("hashed",)


@pytest.mark.parametrize("case", FOUND, ids=[found.case for found in FOUND])
def test_each_broken_policy_is_caught_with_advice(case):
    suite = SUITES[case.base]
    if case.first:
        before = checks(suite)[: checks(suite).index(case.check)]
        early = {name: error for name in before if (error := run(suite, name, case.build(), QUICK))}
        assert not early
    error = run(suite, case.check, case.build())
    assert error is not None, "it passes"
    assert re.search(case.advice, str(error)), str(error)


@pytest.mark.parametrize("base", SUITES)
def test_every_check_has_a_policy_that_it_is_the_first_to_catch(base):
    caught = {found.check for found in FOUND if found.first}
    assert set(checks(SUITES[base])) <= caught


@pytest.mark.parametrize("base", SUITES)
def test_what_they_are_made_of_passes(base):
    for name in checks(SUITES[base]):
        assert run(SUITES[base], name, policy(base, {})) is None
