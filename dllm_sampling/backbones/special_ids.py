"""Which ids are the mask, the pad and the ends of a text, as a checkpoint says in up to four places."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dllm_sampling.errors import CheckpointError, PromptError
from dllm_sampling.inputs.chat_template import WORK, render


def _is_id(value: Any, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def mask_id(config: Mapping[str, Any], vocab_size: int, file: str = "config.json") -> int | None:
    """The id of the mask that a config names; None where it names none."""
    value = config.get("mask_token_id")
    if value is not None and not _is_id(value, vocab_size):
        raise CheckpointError(
            f"{file} says mask_token_id={repr(value)[:100]}; it is an id of the vocabulary, in "
            f"[0, {vocab_size})."
        )
    return value


def pad_id(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """The id of the pad. One that is none is as good as no pad: it is only ever filled in."""
    value = config.get("pad_token_id")
    return value if _is_id(value, vocab_size) else None


def end_ids(config: Mapping[str, Any], vocab_size: int, file: str = "config.json") -> list[int]:
    """The ids that end a text, one or a list of them."""
    value = config.get("eos_token_id")
    if value is None:
        return []
    given = value if isinstance(value, list) else [value]
    for each in given:
        if not _is_id(each, vocab_size):
            raise CheckpointError(
                f"{file} says eos_token_id={repr(value)[:100]}; it is an id of the vocabulary, in "
                f"[0, {vocab_size}), or a list of such."
            )
    return list(dict.fromkeys(given))


def the_mask(configured: int | None, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> int:
    """The mask on which config and tokenizer agree."""
    named = None if tokenizer is None else tokenizer.mask_token_id
    if configured is None and named is None:
        raise CheckpointError(
            "neither config.json nor the tokenizer names a mask_token_id; is it a masked diffusion model?"
        )
    if configured is None and not _is_id(named, vocab_size):
        raise CheckpointError(
            f"the tokenizer's mask_token has the id {named}, which the vocabulary of {vocab_size} ids lacks; "
            "config.json names no mask_token_id."
        )
    if configured is not None and named is not None and configured != named:
        raise CheckpointError(
            f"config.json says mask_token_id={configured}, but the tokenizer's mask_token is {named}; "
            "which of them was trained?"
        )
    mask = configured if configured is not None else named
    assert mask is not None
    return mask


# The end of a turn -----------------------------------------------------------------------------------


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token by which the chat template closes an assistant's message; None where it is not known.

    The template is rendered with conversations whose answers differ. The token is the one that directly
    follows the answers, both at the end and where a question follows; and that opens no message.
    """
    if not tokenizer.chat_template:
        return None
    special: dict[str, int] = {str(token): i for token, i in tokenizer.get_added_vocab().items()}
    special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    special = {token: i for token, i in special.items() if token.strip() and i is not None}
    if not special:
        return None
    found: set[str | None] = set()
    for parts in (False, True):
        for system in (True, False):
            closes = {_closes(tokenizer, special, parts, system, answer) for answer in ("ztX41", "QwV92")}
            found |= closes if len(closes) == 1 else {None}
    found.discard(None)
    return special[str(found.pop())] if len(found) == 1 else None


def _closes(
    tokenizer: PreTrainedTokenizerBase, special: Mapping[str, int], parts: bool, system: bool, answer: str
) -> str | None:
    """The token that closes `answer` in one kind of conversation; None where that cannot be said."""

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}

    chat = [message("system", "sYs7")] if system else []
    chat += [message("user", "uQe1"), message("assistant", answer)]
    contents = ["sYs7", "uQe1", answer] if system else ["uQe1", answer]
    tokens = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
    try:
        ended = _around(_text(tokenizer, chat), contents)
        going_on = _around(_text(tokenizer, [*chat, message("user", "uQe2")]), [*contents, "uQe2"])
    except PromptError:
        return None
    if ended is None or going_on is None:
        return None
    first = [tokens.match(text.lstrip()) for text in (ended[-1], going_on[len(contents)])]
    if first[0] is None or first[1] is None or first[0][0] != first[1][0]:
        return None
    # Before the first message stand what opens it, and messages that the template adds, each with what opens
    # and closes it: there a token that opens is seen once more often than one that closes.
    before, between = Counter(tokens.findall(ended[0])), tokens.findall(ended[len(contents) - 1])
    opens = max((before[token] for token in between), default=0)
    closing = first[0][0]
    return closing if before[closing] < max(1, opens) else None


def _text(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, Any]]) -> str:
    # A few words: what takes long with them is no template of use.
    return render(tokenizer, chat, add_generation_prompt=False, work=WORK // 50)


def _around(text: str, contents: Sequence[str]) -> list[str] | None:
    """The text before, between and behind the contents; None where they do not all stand in it, once."""
    pieces = []
    for content in contents:
        if text.count(content) != 1:
            return None
        before, _, text = text.partition(content)
        pieces.append(before)
    return [*pieces, text]
