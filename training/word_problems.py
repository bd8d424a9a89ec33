"""Word problems with worked answers, for the bundled model: generator, split and tokenizer.

A problem is a chain of additions and subtractions told as a little story; its answer writes one
equation a line and ends with the result after `####`, as GSM8K's answers do:

    Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?

    27+5=32 pens
    32-8=24 pens
    #### 24

Training and held-out problems never overlap: a problem belongs to the held-out side if and only if
the SHA-256 digest of its question starts with a byte below 16 (one in sixteen).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

NAMES = (
    "Mia", "Tom", "Ana", "Ben", "Eva", "Leo", "Zoe", "Max",
    "Ida", "Sam", "Lea", "Jon", "Kim", "Ali", "Noa", "Ray",
)  # fmt: skip
ITEMS = (
    "pens", "cups", "nuts", "eggs", "books", "coins", "cards", "shells",
    "apples", "stamps", "stones", "balls",
)  # fmt: skip
GAINS = ("finds", "buys", "gets", "wins")
LOSSES = ("sells", "loses", "drops", "lends")

MAX_VALUE = 99
MAX_OPERATIONS = 6

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
HEADER_START, HEADER_END, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL_TOKENS = (BOS, EOS, HEADER_START, HEADER_END, END_OF_TURN, MASK)

# The format that LLaDA's instruct checkpoints use: every message under a header, then an open answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    # An expression: jinja drops a newline at the very end of a template.
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
)


@dataclass(frozen=True)
class Problem:
    """One problem: the question, its worked answer and the final number as text."""

    question: str
    answer: str
    result: str

    @property
    def held_out(self) -> bool:
        """Whether this problem belongs to the held-out side of the split."""
        return hashlib.sha256(self.question.encode()).digest()[0] < 16


def make_problem(rng: random.Random, *, easy: bool = False) -> Problem:
    """A random problem of two to six operations with one digit, every value from 0 to 99.

    Easy ones, for the first part of the training, have two to four operations and stay below 50.
    """
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    most = 49 if easy else MAX_VALUE
    value = rng.randint(1, most - 9)
    story, lines = [f"{name} has {value} {items}."], []
    for _ in range(rng.randint(2, 4 if easy else MAX_OPERATIONS)):
        n = rng.randint(1, 9)
        grows = value + n <= most and (value < n or rng.random() < 0.5)
        after = value + n if grows else value - n
        story.append(f"{name} {rng.choice(GAINS if grows else LOSSES)} {n}.")
        lines.append(f"{value}{'+' if grows else '-'}{n}={after} {items}")
        value = after
    story.append(f"How many {items}?")
    return Problem(" ".join(story), "\n".join([*lines, f"#### {value}"]), str(value))


def problems(seed: int, *, held_out: bool, easy: bool = False) -> Iterator[Problem]:
    """Endless problems of one side of the split."""
    rng = random.Random(seed)
    while True:
        problem = make_problem(rng, easy=easy)
        if problem.held_out == held_out:
            yield problem


def render(question: str) -> str:
    """The chat template applied to one user message (checked against the template in the tests)."""
    return (
        f"{BOS}{HEADER_START}user{HEADER_END}\n\n{question}{END_OF_TURN}"
        f"{HEADER_START}assistant{HEADER_END}\n\n"
    )


def train_tokenizer(seed: int = 0, examples: int = 20_000) -> Tokenizer:
    """Byte-level BPE in which every digit is a token of its own; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[+=\-]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = problems(seed, held_out=False)
    texts = (
        f"user\n\n{p.question}\nassistant\n\n{p.answer}"
        for p, _ in zip(stream, range(examples), strict=False)
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
