"""Chats: messages checked, and rendered with a checkpoint's chat template."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dllm_sampling.errors import PromptError, shown, unknown_name
from dllm_sampling.inputs import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]

# What published templates read of a message.
_KEYS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking",
)  # fmt: skip
# A role that is nearly one of these is misspelt; other roles are the template's affair.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ROLE_CUTOFF = 0.75


def checked(messages: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The messages of one chat, content in parts joined. Raises PromptError for what is no chat.

    A message is a mapping with `role` and `content`; it may have name, tool_calls, tool_call_id,
    reasoning_content, reasoning or thinking. Content is text, or a list of parts
    `{"type": "text", "text": ...}`; a message with tool_calls may do without.
    """
    found = [_message(message, f"{where}, message {i}") for i, message in enumerate(messages)]
    if not any((message.get("content") or "").strip() or message.get("tool_calls") for message in found):
        raise PromptError(f"{where} is empty: no message has content.")
    return found


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str) -> str:
    """The chat as the checkpoint's template writes it, up to where the answer begins.

    A template that reads content in parts is given parts. Raises PromptError where the template refuses the
    chat, does not come to an end, or does not show what was said last.
    """
    _refuse_misspelt_roles(tokenizer, messages, where)
    try:
        text = chat_template.render(tokenizer, messages)
        if _shown_in(text, messages) == len(messages):
            return text
        refusal = None
    except PromptError as error:
        text, refusal = "", error
    try:
        of_parts = chat_template.render(tokenizer, [_in_parts(message) for message in messages])
    except PromptError:
        of_parts = ""
    if _shown_in(of_parts, messages) > _shown_in(text, messages):
        return of_parts
    if refusal is not None:
        raise PromptError(f"{where}: {refusal}")
    other = [*messages[:-1], {**messages[-1], "content": "\N{SNOWMAN}"}]
    if messages[-1].get("content") and _rendered_or_none(tokenizer, other) == text:
        raise PromptError(f"{where}: the chat template does not show the content of the last message.")
    return text


def continued(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str) -> str:
    """The chat as the template writes it, cut behind the last message's content, which the answer goes on."""
    text = chat_template.render(tokenizer, messages, add_generation_prompt=False)
    content = str(messages[-1].get("content") or "")
    # As transformers has it: a template may take the spaces off, at the end or at both.
    start = text.rfind(content.strip())
    if start < 0:
        raise PromptError(f"{where}: the chat template does not show the content of the last message.")
    whole = content.lstrip()
    kept = whole if text[start : start + len(whole)] == whole else content.strip()
    return text[: start + len(kept)]


def refuse_lone_surrogates(text: str, where: str) -> None:
    """Raise PromptError where half of a character stands in a text: no tokenizer can read it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise PromptError(
            f"{where}: character {error.start} is {half!r}, half of a character (a lone surrogate)."
        ) from None


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise PromptError(
            f"{where} is {shown(message)}: a chat is a list of messages, mappings with role and content."
        )
    for key in message:
        if key not in _KEYS:
            raise PromptError(f"{where}: {unknown_name('key', key, _KEYS)}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role.strip():
        raise PromptError(f"{where}: role must be a text such as user, got {_given(message, 'role')}.")
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, (list, tuple)):
        raise PromptError(f"{where}: tool_calls must be a list, got {shown(calls)}.")
    if content is None and calls:
        content = ""
    elif isinstance(content, (list, tuple)) and content:
        content = "".join(_part(part, f"{where}, part {i}") for i, part in enumerate(content))
    elif not isinstance(content, str):
        raise PromptError(
            f"{where}: content must be text or a list of text parts, got {_given(message, 'content')}."
        )
    found = {**message, "content": str(content)}
    for key, value in found.items():
        for text in _texts_in(value):
            refuse_lone_surrogates(text, f"{where}, {key}")
    return found


def _part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping) or "type" not in part:
        raise PromptError(f'{where} is {shown(part)}: a part is {{"type": "text", "text": ...}}.')
    if part["type"] != "text":
        raise PromptError(f"{where}: a part of type {shown(part['type'])} cannot be read, only text can.")
    for key in part:
        if key not in ("type", "text"):
            raise PromptError(f"{where}: {unknown_name('key', key, ('type', 'text'))}")
    if not isinstance(part.get("text"), str):
        raise PromptError(f"{where}: text must be text, got {_given(part, 'text')}.")
    return str(part["text"])


def _given(mapping: Message, key: str) -> str:
    return shown(mapping[key]) if key in mapping else "none"


def _texts_in(value: Any) -> list[str]:
    """Every text in a value as JSON knows them, keys included."""
    found: list[str] = []
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))  # a value may hold itself
            waiting += [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    return found


def _refuse_misspelt_roles(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str
) -> None:
    source = str(tokenizer.chat_template)
    for i, message in enumerate(messages):
        role = message["role"]
        if role in _ROLES or f"'{role}'" in source or f'"{role}"' in source:
            continue
        near = difflib.get_close_matches(role.strip().lower(), _ROLES, n=1, cutoff=_ROLE_CUTOFF)
        if near:
            raise PromptError(f"{where}, message {i}: unknown role {shown(role)}. Did you mean {near[0]!r}?")


def _in_parts(message: Message) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _shown_in(text: str, messages: Sequence[Message]) -> int:
    return sum(message["content"].strip() in text for message in messages)


def _rendered_or_none(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str | None:
    try:
        return chat_template.render(tokenizer, messages)
    except PromptError:
        return None
