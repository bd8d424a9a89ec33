"""Tokens that a setting gives as ids or as text."""

from __future__ import annotations

from dllm_sampling import ConfigurationError, ModelFacts


def token_id(token: int | str, facts: ModelFacts, parameter: str) -> int:
    """The id of a token given as id or text."""
    if isinstance(token, int):
        if not 0 <= token < facts.vocab_size:
            raise ConfigurationError(f"{parameter}: {token} is outside [0, {facts.vocab_size}).")
        return token
    if facts.tokenizer is None:
        raise ConfigurationError(f"{parameter}: {token!r} needs a tokenizer, which the checkpoint lacks.")
    known = facts.tokenizer.get_vocab()
    if token in known:
        return int(known[token])
    ids = facts.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigurationError(f"{parameter}: {token!r} is {len(ids)} tokens, not one.")
    return int(ids[0])
