"""A model whose predictions a test chooses, and observations without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.execution import Execution
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.errors import CheckpointError
from dllm_sampling.policies.kinds import Policy
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.positions import Positions
from dllm_sampling.state.region import Region
from dllm_sampling.state.sampling import Sampling

MASK_FROM_END = 1
EOS_FROM_END = 2


class ChosenModel(Backbone):
    """A model that predicts what a function says.

    The last id is the mask, the one before it ends a sequence. It is not loaded from anywhere; the KV
    buffer is written, but not read: predictions depend on the tokens of the forward alone.

    Args:
        predict: From tokens and position ids, both `[batch, n]`, to logits `[batch, n, vocabulary]`.
        vocab_size: Ids that it predicts.
        max_length: Columns that a canvas may have.
        device: Where the canvases lie.
    """

    name: ClassVar[str] = "chosen"

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        vocab_size: int,
        *,
        max_length: int = 4096,
        device: str = "cpu",
    ) -> None:
        self.predict = predict
        allowed = torch.ones(vocab_size, dtype=torch.bool, device=device)
        allowed[vocab_size - MASK_FROM_END] = False
        self.facts = ModelFacts(
            family=self.name,
            tokenizer=None,
            mask_token_id=vocab_size - MASK_FROM_END,
            pad_token_id=vocab_size - EOS_FROM_END,
            eos_token_ids=(vocab_size - EOS_FROM_END,),
            vocab_size=vocab_size,
            max_length=max_length,
            allowed=allowed,
        )
        self._flash = False
        self.execution = Execution(None, "off")

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        raise CheckpointError("a chosen model is not loaded from a checkpoint.")

    def new_buffer(self, length: int) -> KVBuffer:
        return KVBuffer(1, length)

    def logits(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        buffer: KVBuffer | None,
        rows: Tensor,
    ) -> Tensor:
        if buffer is not None:
            states = torch.zeros(*ids.shape, 1, device=ids.device)[:, None]
            buffer.update(states, states, 0)
        predicted = self.predict(ids, position_ids)
        return predicted[:, rows] if rows.ndim == 1 else predicted.take_along_dim(rows[..., None], 1)

    def attention_mask(self, visible: Tensor, positions: Positions) -> Tensor:
        return visible


def observe(
    logits: Tensor,
    *,
    masked: Tensor | None = None,
    policy: Policy | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> tuple[DecodingState, Observation]:
    """What a policy sees after a forward over the whole canvas.

    Args:
        logits: `[batch, region, vocabulary]`; the last id is the mask.
        masked: Bool `[batch, region]`, open targets; all by default. The rest are committed.
        policy: Who gets a memory.
        sampling: How candidates are drawn.
        seed: Of the noise.

    Returns:
        The state and the observation.
    """
    batch, width, vocabulary = logits.shape
    facts = ChosenModel(lambda tokens, _: tokens, vocabulary, device=str(logits.device)).facts
    canvas = torch.zeros(batch, width + 1, dtype=torch.long, device=logits.device)
    targets = torch.ones_like(canvas, dtype=torch.bool)
    targets[:, 0] = False
    slots = {} if policy is None else {id(p): path for path, p in _paths("policy", policy)}
    state = DecodingState(
        tokens=canvas,
        targets=targets,
        valid=torch.ones_like(targets),
        seeds=torch.arange(batch, device=logits.device) + seed,
        idle_steps=torch.zeros(batch, dtype=torch.long, device=logits.device),
        facts=facts,
        slots=slots,
        stop_at_eos=False,
    )
    if masked is not None:
        state.masked[:, 1:] = masked
        state.tokens[:, 1:].masked_fill_(~masked, 0)
    state.read_back()
    region = Region.between(state, 1, width + 1, starts_block=True)
    return state, Observation.of(state, region, sampling or Sampling(), logits, None)


def _paths(path: str, policy: Policy) -> list[tuple[str, Policy]]:
    found = [(path, policy)]
    for field, child in policy.children():
        found += _paths(f"{path}.{field}", child)
    return found
