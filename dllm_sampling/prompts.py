"""From what a caller gives to canvases in batches, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dllm_sampling.errors import PromptError
from dllm_sampling.state import ModelFacts

Chat: TypeAlias = Sequence[Mapping[str, Any]]
Prompt: TypeAlias = "str | Chat | Sequence[int]"
Prompts: TypeAlias = "str | Sequence[Prompt] | Tensor"


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


def encode(
    prompts: Prompts, attention_mask: Tensor | None, facts: ModelFacts, chat_template: bool
) -> list[list[int]]:
    """Token ids of every prompt, padding taken off.

    A string becomes one user message where the checkpoint has a chat template and `chat_template` is
    true, and is tokenised as it stands otherwise. Chat messages always go through the template.
    """
    if isinstance(prompts, Tensor):
        return _from_tensor(prompts, attention_mask)
    if attention_mask is not None:
        raise PromptError("attention_mask goes with a tensor of prompts; lists carry their own length.")
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], (int, Mapping))):
        prompts = [prompts]  # type: ignore[list-item]
    if not prompts:
        raise PromptError("no prompts were given.")
    encoded = [_encode_one(i, prompt, facts, chat_template) for i, prompt in enumerate(prompts)]
    return [_checked(i, ids, facts) for i, ids in enumerate(encoded)]


def _encode_one(index: int, prompt: Any, facts: ModelFacts, chat_template: bool) -> list[int]:
    if not isinstance(prompt, str) and (len(prompt) == 0 or not isinstance(prompt[0], Mapping)):
        return [int(token) for token in prompt]
    tokenizer = facts.tokenizer
    if tokenizer is None:
        raise PromptError("the checkpoint has no tokenizer: give token ids instead of text.")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError(f"prompt {index} is empty.")
        if not (chat_template and tokenizer.chat_template):
            return list(tokenizer(prompt)["input_ids"])
        prompt = [{"role": "user", "content": prompt}]
    if not tokenizer.chat_template:
        raise PromptError("the checkpoint has no chat template: give strings or token ids.")
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _from_tensor(prompts: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    if prompts.ndim != 2 or prompts.is_floating_point() or prompts.shape[0] == 0:
        raise PromptError(
            f"a tensor of prompts is [batch, prompt] integers, not {list(prompts.shape)} {prompts.dtype}."
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(prompts)
    if attention_mask.shape != prompts.shape:
        raise PromptError(
            f"attention_mask is {list(attention_mask.shape)}, the prompts are {list(prompts.shape)}."
        )
    kept = attention_mask.bool().cpu()
    if (kept.long().diff(dim=1) < 0).any():
        raise PromptError("attention_mask must be 0 on the left of each prompt only: pad on the left.")
    rows = [row[keep].tolist() for row, keep in zip(prompts.cpu(), kept, strict=True)]
    return [_checked(i, ids, None) for i, ids in enumerate(rows)]


def _checked(index: int, ids: list[int], facts: ModelFacts | None) -> list[int]:
    if not ids:
        raise PromptError(f"prompt {index} is empty.")
    if facts is not None and not 0 <= min(ids) <= max(ids) < facts.vocab_size:
        raise PromptError(f"prompt {index} holds ids outside [0, {facts.vocab_size}).")
    return ids


def with_targets(
    prompts: list[list[int]], gen_length: int, facts: ModelFacts, places: Sequence[int] | None = None
) -> list[Canvas]:
    """Each prompt followed by `gen_length` targets."""
    if places is not None and len(places) != len(prompts):
        raise PromptError(f"{len(places)} places were given for {len(prompts)} prompts.")
    if gen_length < 1:
        raise PromptError(f"gen_length must be at least 1, got {gen_length}.")
    canvases = []
    for i, ids in enumerate(prompts):
        if len(ids) + gen_length > facts.max_length:
            raise PromptError(
                f"prompt {i} has {len(ids)} tokens, which with gen_length={gen_length} exceed the "
                f"model's context of {facts.max_length}."
            )
        tokens = torch.tensor(ids + [facts.mask_token_id] * gen_length)
        targets = torch.arange(len(tokens)) >= len(ids)
        canvases.append(Canvas(i, tokens, targets, i if places is None else places[i]))
    return canvases


def to_fill(
    canvas: Tensor | Sequence[Sequence[int]], targets: Tensor | Sequence[Any] | None, facts: ModelFacts
) -> list[Canvas]:
    """Canvases to infill: `targets` are bool, or by default every mask id."""
    rows = [torch.as_tensor(row, dtype=torch.long).cpu() for row in canvas]
    if not rows:
        raise PromptError("no canvases were given.")
    marks = [row == facts.mask_token_id for row in rows]
    if targets is not None:
        marks = [torch.as_tensor(mark, dtype=torch.bool).cpu() for mark in targets]
    if len(marks) != len(rows):
        raise PromptError(f"targets has {len(marks)} rows, the canvas {len(rows)}.")
    canvases = []
    for i, (row, mark) in enumerate(zip(rows, marks, strict=True)):
        if row.ndim != 1 or row.shape != mark.shape:
            raise PromptError(f"canvas {i} is {list(row.shape)} and its targets {list(mark.shape)}.")
        _checked(i, row.tolist(), facts)
        if not mark.any():
            raise PromptError(f"canvas {i} has no target: no mask id in it, or targets are all False.")
        if len(row) > facts.max_length:
            raise PromptError(f"canvas {i} has {len(row)} tokens; the model's context is {facts.max_length}.")
        canvases.append(Canvas(i, row, mark, i))
    return canvases


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
