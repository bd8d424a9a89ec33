"""Each hook's docstring is its whole contract: fixed headings, the signature's arguments, and it is true."""

from __future__ import annotations

import inspect
import re
from typing import Any, ClassVar

import pytest
import torch

from dllm_sampling import Decision, Observer, Sampler, Wrapper, load_model
from dllm_sampling.engine.answers import CHECKS
from dllm_sampling.policies import kinds
from dllm_sampling.policies.run_spec import PROJECT, RunSpec, hook_names
from tests.test_docs import OFTEN, reference

HEADINGS = ["Called", "parameters", "returns", "May change", "On a bad answer"]
HOOKS = {name: getattr(RunSpec, name) for name in sorted(hook_names(RunSpec))}
METHODS = {method.__qualname__: method for method in reference.called_by_the_engine()}
SHAPE = re.compile(r"`?\[[a-z ,]+\]")


def problems(function: Any) -> list[str]:
    """What a contract lacks."""
    found = []
    doc = inspect.getdoc(function) or ""
    summary = doc.splitlines()[0] if doc else ""
    if not summary.endswith(".") or len(doc.splitlines()) < 2:
        found.append("it begins with one sentence in a line of its own")
    said = reference.sections(function)
    if list(said) != HEADINGS:
        return [*found, f"headings {list(said)}"]
    own = [name for name in inspect.signature(function).parameters if name != "self"]
    named = [parameter.name for parameter in said["parameters"]]
    if named != own:
        found.append(f"arguments {named} instead of {own}")
    texts = {heading: said[heading].contents for heading in ("Called", "May change", "On a bad answer")}
    texts |= {parameter.name: parameter.description for parameter in said["parameters"]}
    texts["returns"] = said["returns"][0].description
    found += [f"{name}: no sentence" for name, text in texts.items() if not text.strip().endswith(".")]
    answers = inspect.signature(function).return_annotation not in ("None", None)
    if answers != (texts["returns"] != "Nothing."):
        found.append("returns: Nothing, where the signature says None, and only there")
    if said["returns"][0].annotation is not None:
        found.append(
            f"returns: {said['returns'][0].annotation!r} reads as a type: no colon in the first line"
        )
    return found


@pytest.mark.parametrize(("name", "function"), [*HOOKS.items(), *METHODS.items()])
def test_a_contract_is_whole(name, function):
    assert problems(function) == []


@pytest.mark.parametrize(("name", "function"), HOOKS.items())
def test_a_contract_says_what_the_engine_does(name, function):
    said = reference.sections(function)
    assert any(said["Called"].contents.startswith(opening) for opening in OFTEN)
    returns, bad = said["returns"][0].description, said["On a bad answer"].contents
    if name not in CHECKS:
        assert bad == "An answer is ignored."
        return
    first = getattr(function, f"{PROJECT}_spec")["firstresult"]
    assert ("The first answer that is not None counts." in " ".join(returns.split())) == first
    assert ("Every answer counts" in returns) == (not first)
    assert SHAPE.search(returns), "answers are tensors or hold them: their shape"
    assert "PluginError at once" in bad


def test_every_answer_that_is_checked_has_a_contract():
    assert set(METHODS) == {"UnmaskingPolicy.idle_steps", "LogitsTransform.transform"}
    assert set(CHECKS) <= set(HOOKS) | {name.rpartition(".")[2] for name in METHODS}
    assert {hook for kind in kinds.KINDS for hook in kind.hooks} | kinds.LIFECYCLE == set(HOOKS)


def lacking(find: str, replace: str) -> Any:
    def restrict(self: Any, state: Any, observation: Any) -> torch.Tensor:
        raise NotImplementedError

    doc = inspect.getdoc(RunSpec.restrict) or ""
    assert find in doc
    restrict.__doc__ = doc.replace(find, replace, 1)
    return restrict


@pytest.mark.parametrize(
    ("find", "replace", "said"),
    [
        ("Called:\n", "When:\n", "headings"),
        ("On a bad answer:\n", "Otherwise:\n", "headings"),
        ("    state: ", "    canvas: ", "arguments ['canvas', 'observation']"),
        ("    Bool `[batch", "    A mask: bool `[batch", "reads as a type"),
        (" eligible where all are true.", " eligible where all are true", "returns: no sentence"),
        (inspect.getdoc(RunSpec.restrict).splitlines()[0], "Rule out", "one sentence"),
    ],
)
def test_a_contract_that_lacks_something_is_noticed(find, replace, said):
    found = problems(lacking(find, replace))
    assert any(said in problem for problem in found), found


class Chatty(Observer):
    """Answers where nothing is asked."""

    name: ClassVar[str] = "chatty"


for _hook in kinds.LIFECYCLE:
    setattr(Chatty, _hook, lambda self: "an answer")


def test_answers_to_hooks_that_only_tell_are_ignored():
    questions = ["Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"] * 2
    plain, chatty = (
        Sampler(load_model(), observers=observers).generate(questions, gen_length=32)
        for observers in ([], [Chatty()])
    )
    assert torch.equal(plain.sequences, chatty.sequences)


class Refusing(Wrapper):
    """Allows nothing."""

    name: ClassVar[str] = "refusing"

    def restrict(self, observation):
        return observation.eligible & False


class Seeing(Observer):
    """Notes forced commits as the hook `committed` shows them."""

    name: ClassVar[str] = "seeing"

    def committed(self, state, observation, decision):
        assert isinstance(decision, Decision)
        state.memory(self)["commits"] = state.memory(self).get("commits", 0) + decision.commit.sum(1)

    def end(self, state, result):
        assert state.batch == 0
        assert result.forced == result.commits > 0


def test_a_forced_commit_may_fall_where_restrict_allows_none():
    question = "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?"
    sampler = Sampler(load_model(), wrappers=[Refusing()], observers=[Seeing()])
    result = sampler.generate([question], gen_length=16)
    assert result.forced == result.commits == result.forwards > 0
