"""What a loaded checkpoint says of itself: special ids, vocabulary, lengths."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dllm_sampling.backbones import special_ids
from dllm_sampling.errors import CheckpointError
from dllm_sampling.state.facts import ModelFacts


def facts_of(family: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> ModelFacts:
    """The facts of a model and its tokenizer. CheckpointError where they contradict each other."""
    config = model.config
    text = config.get_text_config()
    size: int = getattr(config, "written_vocab_size", None) or text.vocab_size
    mask = special_ids.the_mask(getattr(config, "mask_token_id", None), tokenizer, size)
    ends = special_ids.end_ids({"eos_token_id": config.eos_token_id}, size)
    if tokenizer is not None:
        ends += [i for i in (tokenizer.eos_token_id,) if i is not None and i < size]
    if mask in ends:
        raise CheckpointError(
            f"mask_token_id={mask} is an eos_token_id too: what is to be written would end the text."
        )
    if tokenizer is not None:
        ends += [i for i in (special_ids.end_of_turn(tokenizer),) if i not in (None, mask) and i < size]
    ends = list(dict.fromkeys(ends))
    pads = [config.pad_token_id, None if tokenizer is None else tokenizer.pad_token_id, *ends, mask]
    pad = next(i for i in pads if i is not None and 0 <= i < size and (i != mask or not ends))
    allowed = torch.zeros(text.vocab_size, dtype=torch.bool)
    known = range(size) if tokenizer is None else tokenizer.get_vocab().values()
    allowed[[i for i in known if i < size]] = True
    allowed[mask] = False
    return ModelFacts(
        family=family,
        tokenizer=tokenizer,
        mask_token_id=mask,
        pad_token_id=pad,
        eos_token_ids=tuple(ends),
        vocab_size=text.vocab_size,
        max_length=text.max_position_embeddings,
        allowed=allowed.to(_input_device(model)),
    )


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where the model takes its tokens: beside the embedding, or in memory where that is offloaded."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Module)
    device = next(embedding.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
