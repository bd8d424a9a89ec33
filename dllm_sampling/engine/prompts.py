"""From what a caller gives to canvases in batches, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from dllm_sampling.errors import PromptError, shown
from dllm_sampling.inputs import messages, token_ids
from dllm_sampling.inputs.arguments import flag, whole
from dllm_sampling.state.facts import ModelFacts

if TYPE_CHECKING:
    import numpy as np

Chat: TypeAlias = Sequence[Mapping[str, Any]]
Ids: TypeAlias = "Sequence[int] | Tensor | np.ndarray[Any, Any]"
Prompt: TypeAlias = "str | Chat | Ids | Mapping[str, Any]"
Prompts: TypeAlias = "Prompt | Sequence[Prompt]"

_TAKEN = "a prompt is a text, a list of token ids, a chat (a list of messages) or what a tokenizer returns"
_LARGEST_PLACE = 2**63 - 1


@dataclass(frozen=True)
class Canvas:
    """One row before it is batched: its tokens, which of them are targets, and its place in the call.

    index: where the row stands in what the call returns. place: what its noise depends on.
    """

    index: int
    tokens: Tensor
    targets: Tensor
    place: int

    @property
    def before(self) -> int:
        """Tokens in front of the first target (all of them where there is none)."""
        found = self.targets.nonzero()
        return int(found[0]) if len(found) else len(self.tokens)

    @property
    def after(self) -> int:
        """Tokens from the first target on."""
        return len(self.tokens) - self.before


# Prompts --------------------------------------------------------------------------------------------


def encode(prompts: Prompts, attention_mask: Any, facts: ModelFacts, chat_template: bool) -> list[list[int]]:
    """Token ids of every prompt, padding taken off. This is the one place that decides what is a prompt.

    A prompt is a text; a chat, which is a list of messages (see `messages.checked`); token ids, which are a
    list of whole numbers or a 1-dimensional tensor or array; or what a tokenizer returns for one text: a
    mapping with input_ids. Prompts are one of these or a list of them, a tensor or array
    `[batch, prompt]` with its `attention_mask`, or what a tokenizer returns for several texts.
    `attention_mask` is 0 on padding, which stands on the left; every id of a list counts.

    A text becomes one user message where the checkpoint has a chat template and `chat_template` is
    true, and is tokenised as it stands otherwise. Chats always go through the template.

    Raises PromptError naming the prompt and what is wrong with it, for anything else.
    """
    flag("chat_template", chat_template)
    if token_ids.is_encoding(prompts):
        if attention_mask is not None:
            raise PromptError("attention_mask is given twice: what a tokenizer returns has its own.")
        prompts, attention_mask = token_ids.opened("prompts", prompts)  # type: ignore[arg-type]
        if not _is_batch(prompts):
            ids = token_ids.one("prompt 0", prompts, attention_mask)
            return [_within(ids, "prompt 0", facts)]
        rows = token_ids.several("prompt", prompts, attention_mask, facts.pad_token_id)
        return [_within(ids, f"prompt {i}", facts) for i, ids in enumerate(rows)]
    if token_ids.is_array(prompts):
        rows = token_ids.several("prompt", prompts, attention_mask, facts.pad_token_id)
        return [_within(ids, f"prompt {i}", facts) for i, ids in enumerate(rows)]
    if attention_mask is not None:
        raise PromptError("attention_mask goes with a tensor of prompts; lists carry their own length.")
    listed = _listed(prompts)
    return [encode_one(prompt, i, facts, chat_template) for i, prompt in enumerate(listed)]


def encode_one(
    prompt: Any, index: int, facts: ModelFacts, chat_template: bool, gen_length: int | None = None
) -> list[int]:
    """Token ids of one prompt, as `encode` takes them; errors name it `prompt INDEX`.

    With `gen_length` it must fit into the model's context with so many targets behind it.
    """
    where = f"prompt {index}"
    taken = checked(prompt, where)
    ids = taken if _is_ids(taken) else _from_text(taken, where, facts, chat_template)
    _within(ids, where, facts)
    if gen_length is not None:
        _refuse_too_long(len(ids), where, gen_length, facts)
    return ids


def checked(prompt: Any, where: str) -> str | list[dict[str, Any]] | list[int]:
    """One prompt as text, messages or token ids, without a model; `where` names it in errors."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError(f"{where} is empty.")
        messages.refuse_lone_surrogates(prompt, where)
        return str(prompt)
    if token_ids.is_encoding(prompt):
        return _some(token_ids.one(where, *token_ids.opened(where, prompt)), where)
    if token_ids.is_array(prompt):
        return _some(token_ids.one(where, prompt), where)
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray, memoryview)):
        hint = "; a chat is a list of messages" if isinstance(prompt, Mapping) else ""
        raise PromptError(f"{where} is {shown(prompt)}{hint}: {_TAKEN}.")
    if any(isinstance(entry, Mapping) for entry in prompt):
        return messages.checked(prompt, where)
    if any(isinstance(entry, str) for entry in prompt):
        raise PromptError(f"{where} is a list with text in it: {_TAKEN}.")
    return _some(token_ids.one(where, prompt), where)


def width(prompts: Prompts, rows: Sequence[Sequence[int]]) -> int:
    """The columns of the prompts as they were given, padding included; `rows` are their ids without it."""
    if token_ids.is_encoding(prompts):
        prompts = prompts["input_ids"]  # type: ignore[call-overload, index]
    if token_ids.is_array(prompts):
        return int(prompts.shape[-1])  # type: ignore[union-attr]
    return max(len(row) for row in rows)


def tokenised(text: str, where: str, facts: ModelFacts, *, special: bool) -> list[int]:
    """Token ids of a text as it stands; `special`: with the tokens that the tokenizer puts around a text."""
    tokenizer = facts.tokenizer
    if tokenizer is None:
        raise PromptError("the checkpoint has no tokenizer: give token ids instead of text.")
    try:
        ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    except Exception as error:  # noqa: BLE001 - tokenizers are foreign code and fail in many ways
        raise PromptError(f"{where}: the tokenizer cannot read it: {type(error).__name__}: {error}") from None
    return _within(ids, where, facts)


def _listed(prompts: Any) -> Sequence[Any]:
    """A list of prompts from one prompt or several."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray, memoryview)):
        hint = ""
        if isinstance(prompts, Mapping):
            hint = "; a chat is a list of messages" if "content" in prompts else "; input_ids is missing"
        raise PromptError(f"prompts are {shown(prompts)}{hint}: {_TAKEN}, or a list of these.")
    if len(prompts) == 0:
        raise PromptError("no prompts were given.")
    is_chat = any(isinstance(entry, Mapping) and not token_ids.is_encoding(entry) for entry in prompts)
    return [prompts] if is_chat or any(map(_is_number, prompts)) else prompts


def _is_number(value: object) -> bool:
    return isinstance(value, Number) or (token_ids.is_array(value) and value.ndim == 0)  # type: ignore[attr-defined]


def _is_batch(values: Any) -> bool:
    """Whether the input_ids of an encoding are those of several texts."""
    if token_ids.is_array(values):
        return bool(values.ndim != 1)
    return isinstance(values, Sequence) and not isinstance(values, str) and not any(map(_is_number, values))


def _is_ids(taken: Any) -> TypeGuard[list[int]]:
    return not isinstance(taken, str) and not (taken and isinstance(taken[0], Mapping))


def _from_text(
    taken: str | list[dict[str, Any]] | list[int], where: str, facts: ModelFacts, chat_template: bool
) -> list[int]:
    tokenizer = facts.tokenizer
    if tokenizer is None:
        raise PromptError("the checkpoint has no tokenizer: give token ids instead of text.")
    if isinstance(taken, str):
        if not (chat_template and tokenizer.chat_template):
            return tokenised(taken, where, facts, special=True)
        taken = [{"role": "user", "content": taken}]
    if not tokenizer.chat_template:
        raise PromptError("the checkpoint has no chat template: give strings or token ids.")
    text = messages.rendered(tokenizer, taken, where)  # type: ignore[arg-type]
    return tokenised(text, where, facts, special=False)


def _some(ids: list[int], where: str) -> list[int]:
    if not ids:
        raise PromptError(f"{where} is empty.")
    return ids


def _within(ids: list[int], where: str, facts: ModelFacts) -> list[int]:
    if not 0 <= min(_some(ids, where)) <= max(ids) < facts.vocab_size:
        raise PromptError(f"{where} holds ids outside [0, {facts.vocab_size}).")
    return ids


# Canvases -------------------------------------------------------------------------------------------


def canvases_to_generate(
    prompts: list[list[int]], gen_length: int, facts: ModelFacts, places: Sequence[int] | None = None
) -> list[Canvas]:
    """Each prompt followed by `gen_length` targets."""
    gen_length = whole("gen_length", gen_length, least=1, error=PromptError)
    own = list(range(len(prompts))) if places is None else _places(places, len(prompts))
    canvases = []
    for i, ids in enumerate(prompts):
        _refuse_too_long(len(ids), f"prompt {i}", gen_length, facts)
        tokens = torch.tensor(ids + [facts.mask_token_id] * gen_length)
        targets = torch.arange(len(tokens)) >= len(ids)
        canvases.append(Canvas(i, tokens, targets, own[i]))
    return canvases


def _places(places: Any, count: int) -> list[int]:
    if token_ids.is_array(places) and places.ndim == 1:
        places = places.tolist()
    if not isinstance(places, Sequence) or isinstance(places, (str, bytes)):
        raise PromptError(f"places must be a list of whole numbers, one a prompt, got {shown(places)}.")
    if len(places) != count:
        raise PromptError(f"{len(places)} places were given for {count} prompts.")
    return [
        whole(f"places[{i}]", place, least=0, most=_LARGEST_PLACE, error=PromptError)
        for i, place in enumerate(places)
    ]


def _refuse_too_long(length: int, where: str, gen_length: int, facts: ModelFacts) -> None:
    if length + gen_length > facts.max_length:
        raise PromptError(
            f"{where} has {length} tokens, which with gen_length={shown(gen_length)} exceed the "
            f"model's context of {facts.max_length}."
        )


def canvases_to_infill(canvas: Any, targets: Any, facts: ModelFacts) -> list[Canvas]:
    """Canvases to infill: `canvas` is a tensor or array `[batch, length]` of token ids or a list of rows.

    `targets`, in the same shape, are True (or 1) where a token is to be written; without them that is
    every mask id. Raises PromptError naming the canvas and what is wrong with it.
    """
    rows = [
        _within(token_ids.one(f"canvas {i}", row), f"canvas {i}", facts)
        for i, row in enumerate(_rows("canvas", canvas, "token ids"))
    ]
    marks = [[token == facts.mask_token_id for token in row] for row in rows]
    if targets is not None:
        given = _rows("targets", targets, "True and False")
        if len(given) != len(rows):
            raise PromptError(f"targets has {len(given)} rows, the canvas {len(rows)}.")
        marks = [token_ids.marks(f"canvas {i}", row) for i, row in enumerate(given)]
    canvases = []
    for i, (row, mark) in enumerate(zip(rows, marks, strict=True)):
        if len(row) != len(mark):
            raise PromptError(f"canvas {i} has {len(row)} tokens and {len(mark)} targets.")
        if not any(mark):
            raise PromptError(f"canvas {i} has no target: no mask id in it, or targets are all False.")
        if len(row) > facts.max_length:
            raise PromptError(f"canvas {i} has {len(row)} tokens; the model's context is {facts.max_length}.")
        canvases.append(Canvas(i, torch.tensor(row), torch.tensor(mark), i))
    return canvases


def _rows(name: str, values: Any, of: str) -> Sequence[Any]:
    """The rows of `[batch, length]`."""
    rule = f"{name} must be a tensor [batch, length] or a list of rows, each a list of {of}"
    if token_ids.is_array(values):
        if values.ndim != 2:
            raise PromptError(f"{rule}; got {list(values.shape)}.")
        return list(values)
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray, memoryview)):
        raise PromptError(f"{rule}; got {shown(values)}.")
    if len(values) == 0:
        raise PromptError("no canvases were given.")
    for i, row in enumerate(values):
        if isinstance(row, str) or not (isinstance(row, Sequence) or token_ids.is_array(row)):
            raise PromptError(f"{rule}; row {i} is {shown(row)}.")
    return values


@dataclass(frozen=True)
class Batch:
    """Canvases side by side: first targets in one column, padding left and right."""

    canvases: list[Canvas]
    tokens: Tensor
    targets: Tensor
    valid: Tensor
    starts: list[int]

    @classmethod
    def of(cls, canvases: list[Canvas], facts: ModelFacts) -> Batch:
        """Align the canvases; tensors are `[batch, length]` on the model's device."""
        before = max(canvas.before for canvas in canvases)
        length = before + max(canvas.after for canvas in canvases)
        tokens = torch.full((len(canvases), length), facts.pad_token_id)
        targets = torch.zeros(tokens.shape, dtype=torch.bool)
        valid = torch.zeros(tokens.shape, dtype=torch.bool)
        starts = [before - canvas.before for canvas in canvases]
        for row, (start, canvas) in enumerate(zip(starts, canvases, strict=True)):
            span = slice(start, start + len(canvas.tokens))
            tokens[row, span] = canvas.tokens
            targets[row, span] = canvas.targets
            valid[row, span] = True
        device = facts.device
        return cls(canvases, tokens.to(device), targets.to(device), valid.to(device), starts)


def longest_first(canvases: list[Canvas]) -> list[Canvas]:
    """Canvases by falling length, so that what fits is known early; equal ones in their order."""
    return sorted(canvases, key=lambda canvas: (-len(canvas.tokens), canvas.index))


def batches(canvases: list[Canvas], size: int, facts: ModelFacts) -> Iterator[Batch]:
    """Canvases in batches of `size`, the longest first."""
    ordered = longest_first(canvases)
    for start in range(0, len(ordered), size):
        yield Batch.of(ordered[start : start + size], facts)
