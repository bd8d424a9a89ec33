"""Checks for those who write a task: subclass, give one fixture, run pytest.

class TestMine(TaskConformance):
    @pytest.fixture
    def task(self):
        return Mine()

    def right(self, example):
        return f"#### {example.answer}"  # where the checker looks for a marker
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Mapping, Sequence

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from dllm_sampling.errors import DllmSamplingError, in_one_line
from dllm_sampling.tasks import Example, Task

# As many examples are checked; all are read.
_MOST = 50
# What a model may write: a checker answers whatever it is.
_ODD = ("", " \n", "\0", "####", "####" * 999, "\N{SNOWMAN}", "1" * 5000, "-", "[[[", "\\frac{1}{0}", "None")


class TaskConformance:
    """What every task must do.

    Fixtures:
        `task`, which you give. `tokenizer`, None unless you give one: gen_length is then held against the
        tokens of the right answers, else against their words.
    """

    @pytest.fixture
    def task(self) -> Task:
        """The instance to be tried."""
        pytest.fail(f"{type(self).__name__} must define a fixture `task` that returns the instance to test.")

    @pytest.fixture
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Counts the tokens of answers."""
        return None

    def right(self, example: Example) -> str:
        """A text that answers an example; the answer itself unless overridden.

        Args:
            example: What is asked.

        Returns:
            The text.
        """
        return example.answer

    def wrong(self, example: Example) -> Sequence[str]:
        """Texts that do not answer an example.

        Args:
            example: What is asked.

        Returns:
            The texts.
        """
        return ("", "I do not know.")

    # What it is ------------------------------------------------------------------------------------

    def test_it_is_a_task(self, task: Task) -> None:
        assert isinstance(task, Task), f"{type(task).__name__} must subclass Task."
        assert re.fullmatch(r"[a-z][a-z0-9_]*", task.name), (
            f"name = {task.name!r}: names are lower case with underscores; config files use them."
        )

    def test_its_settings_are_frozen(self, task: Task) -> None:
        for field in type(task).model_fields:
            try:
                setattr(task, field, getattr(task, field))
            except (ValueError, AttributeError):
                continue
            pytest.fail(f"{field} can be set: leave `frozen` in model_config as it is.")

    def test_its_settings_survive_yaml(self, task: Task) -> None:
        written = yaml.safe_dump(task.model_dump(mode="json"))
        data = yaml.safe_load(written)
        data.pop("name", None)
        assert type(task).model_validate(data) == task, (
            f"written and read back it is another task:\n{written}"
        )

    def test_it_refuses_unknown_settings(self, task: Task) -> None:
        data = task.model_dump(mode="json") | {"no_such_setting": 1}
        data.pop("name", None)
        try:
            type(task).model_validate(data)
        except (ValueError, DllmSamplingError):
            return
        pytest.fail("a misspelt setting would be ignored: leave `extra` in model_config as it is.")

    def test_it_travels_to_another_process(self, task: Task) -> None:
        """Studies send tasks to their workers."""
        try:
            again = pickle.loads(pickle.dumps(task))
        except Exception as error:  # noqa: BLE001 - whatever pickling raises
            pytest.fail(
                f"it cannot be pickled ({type(error).__name__}: {error}): open files when they are read."
            )
        assert again == task, "pickled and read back it is another task."

    # Its examples ----------------------------------------------------------------------------------

    def test_it_has_examples(self, task: Task) -> None:
        examples = list(task.examples())
        assert examples, "there is no example."
        for example in examples:
            assert isinstance(example, Example), f"{example!r} is not an Example."
            _check_prompt(example)
            assert isinstance(example.answer, str), f"answer = {example.answer!r}; it is text."

    def test_its_examples_are_always_the_same(self, task: Task) -> None:
        again = pickle.loads(pickle.dumps(task))
        first = list(task.examples())
        for other in (task, again):
            assert list(other.examples()) == first, (
                "the examples or their order changed from one call to the next: a study that goes on later "
                "would compare different problems. Sort what is found, draw with a generator of a fixed seed."
            )

    def test_answers_fit_into_its_length(self, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> None:
        for example in list(task.examples())[:_MOST]:
            text = self.right(example)
            words = len(text.split()) if tokenizer is None else len(tokenizer(text)["input_ids"])
            assert words <= task.gen_length, (
                f"gen_length = {task.gen_length}, and a right answer alone takes {words}: {text[:80]!r}."
            )

    # Its checker -----------------------------------------------------------------------------------

    def test_right_answers_are_right(self, task: Task) -> None:
        for example in list(task.examples())[:_MOST]:
            text = self.right(example)
            assert task.is_correct(text, example), (
                f"{text!r} does not answer {example.prompt!r}. Where an answer needs a form of its own, say "
                "which in the test's `right(example)`."
            )

    def test_wrong_answers_are_wrong(self, task: Task) -> None:
        examples = list(task.examples())[:_MOST]
        for example, other in zip(examples, examples[1:] + examples[:1], strict=True):
            texts = list(self.wrong(example))
            if other.answer != example.answer:
                texts.append(self.right(other))
            for text in texts:
                assert not task.is_correct(text, example), (
                    f"{text!r} counts as an answer to {example.prompt!r}, which is {example.answer!r}."
                )

    def test_its_checker_answers_whatever_is_written(self, task: Task) -> None:
        example = task.examples()[0]
        for text in (*_ODD, self.right(example)):
            try:
                answer = task.is_correct(text, example)
            except Exception as error:  # noqa: BLE001 - whatever a checker raises
                pytest.fail(
                    f"is_correct raised {type(error).__name__} ({in_one_line(str(error))}) for "
                    f"{text[:40]!r}: what is no answer is a wrong one."
                )
            assert isinstance(answer, bool), f"is_correct answered {answer!r}; it is True or False."

    def test_its_checker_remembers_nothing(self, task: Task) -> None:
        examples = list(task.examples())[:_MOST]
        before = copy.deepcopy(examples)
        texts = [text for example in examples[:5] for text in (self.right(example), *self.wrong(example))]
        asked = [(text, example) for example in examples[:5] for text in texts]
        first = [task.is_correct(*pair) for pair in asked]
        second = [task.is_correct(*pair) for pair in reversed(asked)][::-1]
        assert first == second, "asked again in another order the checker answers otherwise."
        assert examples == before, "the checker changed an example."


def _check_prompt(example: Example) -> None:
    prompt = example.prompt
    if isinstance(prompt, str):
        assert prompt.strip(), "a prompt is empty."
        return
    for message in prompt:
        fits = isinstance(message, Mapping) and {"role", "content"} <= message.keys()
        assert fits, f"{message!r} is no message: a prompt is text, or messages with role and content."
