"""A model that the engine can ask: one forward over planned positions, logits for the region's rows.

No model code: a family says which stock transformers class its checkpoints fit and how their tensors
are called there. The forward is the same for all.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from dllm_sampling.backbones import special_ids
from dllm_sampling.backbones.execution import Compile, Execution, forward
from dllm_sampling.backbones.kv_buffer import KVBuffer
from dllm_sampling.backbones.tokenizer import read_tokenizer
from dllm_sampling.errors import CheckpointError, ConfigurationError, DecodingError, PluginError
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.facts import ModelFacts
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.region import Region
from dllm_sampling.state.sampling import Sampling


class Forward(NamedTuple):
    """What one forward shows; how many positions each row computed; what compiling it took, if it did."""

    observation: Observation
    width: int
    compile_seconds: float


class _Job(NamedTuple):
    """One call of the model: rows are the canvases of the batch, then their branches."""

    ids: Tensor
    position_ids: Tensor
    visible: Tensor | None
    positions: slice | Tensor
    writers: Tensor | None
    rows: Tensor


class Backbone(ABC):
    """A loaded model of one family. Plugins subclass it; `load_model` finds the class by `matches`.

    name: the family. shift: 1 where output i predicts position i + 1, else 0; no policy ever sees it.
    compile: how forwards are run, see `backbones.execution`; "off" leaves the model as it is.
    tokenizer_class: that of folders which hold vocab.json alone, where they name one of their own.
    keys: what config.json calls the stock config's sizes, for messages, where it has other names.
    """

    kind: ClassVar[str] = "backbone"
    name: ClassVar[str]
    shift: ClassVar[int] = 0
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase] | None] = None
    keys: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        compile: Compile = "off",
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.facts = self._facts()
        self._flash = "flash" in (model.config._attn_implementation or "")
        if self._flash:
            _drop_position_ids(model)
        self.execution = Execution(model, compile, device=self.facts.device, flash=self._flash)

    # What a family says ------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def matches(cls, config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint's config.json is of this family."""

    @classmethod
    @abstractmethod
    def stock(
        cls, config: Mapping[str, Any]
    ) -> tuple[type[PreTrainedModel], PretrainedConfig, dict[str, str]]:
        """The stock class, its config, and the renaming of tensors (pattern to replacement).

        Raises CheckpointError for a config that no stock class computes.
        """

    @classmethod
    def load_tokenizer(cls, folder: Path) -> PreTrainedTokenizerBase | None:
        """The folder's tokenizer; None where it holds none. CheckpointError where its files are damaged."""
        return read_tokenizer(folder, cls.tokenizer_class)

    @classmethod
    def finish(cls, model: PreTrainedModel) -> PreTrainedModel:
        """Last touches to a model that was just loaded."""
        return model

    def with_facts(self, facts: ModelFacts) -> Self:
        """The same model, weights and execution shared, that says other facts of itself."""
        other = copy.copy(self)
        other.facts = facts
        return other

    # The forward -------------------------------------------------------------------------------

    def new_buffer(self, length: int) -> KVBuffer:
        """An empty KV buffer for canvases of that length; `execution.release` takes it back."""
        return self.execution.new_buffer(self.model.config.get_text_config().num_hidden_layers, length)

    @torch.no_grad()
    def forward(
        self,
        state: DecodingState,
        region: Region,
        plan: ForwardPlan,
        buffer: KVBuffer,
        sampling: Sampling,
        canvases: Mapping[str, Tensor] | None = None,
    ) -> Forward:
        """Compute the planned positions and show what they say of the region.

        canvases: tokens of further canvases, see the hook of that name.
        """
        positions, source, fresh = self._rows(state, region, plan)
        tokens = [state.tokens, *(canvases or {}).values()]
        writers = self._writers(state, region) if plan.store else None
        width = positions.shape[1] if isinstance(positions, Tensor) else positions.stop - positions.start
        everything = isinstance(positions, slice) and width == state.length
        if plan.store:
            self._note_written(state, plan, buffer, positions, writers, everything, len(tokens))
        visible = state.valid if plan.visible is None else plan.visible & state.valid
        hidden = state.has_padding or plan.visible is not None
        if plan.store and not buffer.complete:
            assert buffer.written is not None
            visible, hidden = visible & buffer.written, True
        if not plan.store and isinstance(positions, Tensor):
            visible, hidden = state.gather(visible, positions) & (positions >= 0), True
        elif not plan.store and not everything:
            visible = visible[:, positions]
        spent = self.execution.compile_seconds
        job = _Job(
            ids=torch.cat([state.at(each, positions) for each in tokens]),
            position_ids=_repeated(state.at(state.position_ids, positions), len(tokens)),
            visible=_repeated(visible, len(tokens)) if hidden else None,
            positions=_repeated(positions, len(tokens)) if isinstance(positions, Tensor) else positions,
            writers=None if writers is None else _repeated(writers, len(tokens)),
            rows=source if source.ndim == 1 else _repeated(source, len(tokens)),
        )
        logits = None
        if plan.store and not everything:
            logits = self._compiled(job, state, buffer)
        if logits is None:
            logits = self.logits(
                job.ids,
                job.position_ids,
                None if job.visible is None else self._attention_mask(job.visible, width, positions),
                buffer.at(job.positions, job.writers) if plan.store else None,
                job.rows,
            )
        if logits.device != state.tokens.device:  # layers spread over devices
            logits = logits.to(state.tokens.device)
        own, *others = logits.chunk(len(tokens))
        branches = dict(zip(canvases or {}, others, strict=True))
        observation = Observation.of(state, region, sampling, own, fresh, branches)
        return Forward(observation, width * len(tokens), self.execution.compile_seconds - spent)

    @staticmethod
    def _note_written(
        state: DecodingState,
        plan: ForwardPlan,
        buffer: KVBuffer,
        positions: slice | Tensor,
        writers: Tensor | None,
        everything: bool,
        copies: int,
    ) -> None:
        """Keep account of the slots that hold something; refuse a first plan that leaves some out."""
        if not buffer.filled:
            if plan.visible is None and not everything:
                raise DecodingError(
                    "the first forward of a run must compute every visible position: plan "
                    "ForwardPlan.full(state)."
                )
            buffer.copies = copies
        elif copies != buffer.copies:
            raise PluginError(
                f"this step names {copies - 1} further canvases and the run began with {buffer.copies - 1}; "
                "where keys and values are stored they must stay the same."
            )
        if everything and writers is None:
            buffer.complete, buffer.written = True, None
        if buffer.complete:
            return
        if buffer.written is None:
            buffer.written = torch.zeros_like(state.valid)
        now = ForwardPlan(positions).mask(state)
        buffer.written = buffer.written | (now if writers is None else now & writers[:, None])

    def _compiled(self, job: _Job, state: DecodingState, buffer: KVBuffer) -> Tensor | None:
        """The same forward padded to a shape that others share; None where it cannot be compiled."""
        batch, width = job.ids.shape
        kept = job.rows.shape[-1]
        padded, rows = self.execution.width(width), self.execution.width(kept)
        if padded is None or rows is None:
            return None
        positions = job.positions
        if isinstance(positions, slice):
            positions = state.columns[positions].expand(batch, -1)
        where = positions if job.writers is None else positions.masked_fill(~job.writers[:, None], -1)
        visible = _repeated(state.valid, batch // state.batch) if job.visible is None else job.visible
        logits = self.execution.step(
            self.model,
            _padded(job.ids, padded, 0),
            _padded(job.position_ids, padded, 0),
            self._attention_mask(_padded(visible, buffer.slots, 0), padded, positions),
            buffer.at(_padded(where, padded, -1), None, seen=buffer.slots),
            _padded(job.rows.expand(batch, -1), rows, 0),
        )
        return None if logits is None else logits[:, :kept]

    def logits(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        buffer: KVBuffer | None,
        rows: Tensor,
    ) -> Tensor:
        """Logits `[batch, n, vocabulary]` of the chosen rows: `rows [n]`, or `[batch, n]`."""
        return forward(self.model, ids, position_ids, attention_mask, buffer, rows)

    def _rows(
        self, state: DecodingState, region: Region, plan: ForwardPlan
    ) -> tuple[slice | Tensor, Tensor, Tensor | None]:
        """Positions to compute, which of their rows predict the region, and what of it is fresh."""
        span, planned = region.span, plan.positions
        if span is not None and isinstance(planned, slice):
            first, width = span.start - self.shift, span.stop - span.start
            # A row's first token has no row before it to be read off.
            behind_starts = self.shift == 0 or span.start > state.last_start
            if behind_starts and planned.start <= span.start and span.stop <= planned.stop:
                planned = slice(min(planned.start, first), planned.stop)
                offset = first - planned.start
                return planned, state.columns[offset : offset + width], None
        return self._scattered_rows(state, region, planned)

    def _scattered_rows(
        self, state: DecodingState, region: Region, planned: slice | Tensor
    ) -> tuple[slice | Tensor, Tensor, Tensor]:
        """The general case: regions or plans that differ from row to row."""
        wanted = region.positions
        if self.shift:
            # The first token of a text is read off its own row, as the originals do.
            first = state.valid.long().argmax(1, keepdim=True)
            wanted = torch.where(wanted > first, wanted - self.shift, wanted)
        if isinstance(planned, slice) and planned.stop - planned.start == state.length:
            return planned, wanted.clamp_min(0), wanted >= 0
        if isinstance(planned, slice):
            planned = state.columns[planned].expand(state.batch, -1)
        if self.shift:
            inside = self._find(state, planned, region.positions) >= 0
            missing = inside & (self._find(state, planned, wanted) < 0)
            planned = torch.cat([planned, wanted.where(missing, -1)], 1)
        index = self._find(state, planned, wanted)
        return planned, index.clamp_min(0), index >= 0

    @staticmethod
    def _find(state: DecodingState, planned: Tensor, wanted: Tensor) -> Tensor:
        """Where in `planned [batch, width]` each wanted position stands; -1 where it does not."""
        where = torch.full((state.batch, state.length + 1), -1, device=planned.device)
        order = torch.arange(planned.shape[1], device=planned.device).expand_as(planned)
        where.scatter_(1, planned.masked_fill(planned < 0, state.length), order)
        where[:, state.length] = -1
        return where.gather(1, wanted.masked_fill(wanted < 0, state.length))

    @staticmethod
    def _writers(state: DecodingState, region: Region) -> Tensor | None:
        """The rows whose keys and values are written: those with an open target in the region."""
        if state.batch == 1:
            return None
        if region.span is not None:
            if all(column < region.span.stop for column in state.next_open):
                return None
            return state.masked[:, region.span].any(1)
        return (state.gather(state.masked, region.positions) & (region.positions >= 0)).any(1)

    def _attention_mask(self, visible: Tensor, width: int, positions: slice | Tensor) -> Tensor:
        if self._flash:
            ends_canvas = isinstance(positions, slice) and positions.stop == visible.shape[1]
            if not ends_canvas and width > 1:
                raise ConfigurationError(
                    "flash attention aligns its padding mask with the end of the canvas, so with padding "
                    "or a visible set it cannot compute a window in the middle: use "
                    "attn_implementation='sdpa', batch_size=1 or cache='prefix' or 'none'."
                )
            return visible
        mask = visible[:, None, None, :].expand(-1, 1, width, -1)
        if self.model.config._attn_implementation in _BOOLEAN_MASKS:
            return mask
        # Added to the scores: a boolean mask would be added as 1 and 0.
        dtype = self.model.dtype
        return torch.zeros((), dtype=dtype, device=mask.device).where(mask, torch.finfo(dtype).min)

    # Facts -------------------------------------------------------------------------------------

    def _facts(self) -> ModelFacts:
        config, tokenizer = self.model.config, self.tokenizer
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
            family=self.name,
            tokenizer=tokenizer,
            mask_token_id=mask,
            pad_token_id=pad,
            eos_token_ids=tuple(ends),
            vocab_size=text.vocab_size,
            max_length=text.max_position_embeddings,
            allowed=allowed.to(_input_device(self.model)),
        )


# Attention implementations that take a boolean mask.
_BOOLEAN_MASKS = {"sdpa", "sdpa_rope32"}


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where the model takes its tokens: beside the embedding, or in memory where that is offloaded."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Module)
    device = next(embedding.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def _repeated(values: Tensor, times: int) -> Tensor:
    return values if times == 1 else values.repeat(times, *[1] * (values.ndim - 1))


def _padded(values: Tensor, width: int, value: int) -> Tensor:
    """`values [batch, n]` with columns of `value` behind, up to `width`."""
    missing = width - values.shape[1]
    return torch.nn.functional.pad(values, (0, missing), value=value) if missing else values


def _drop_position_ids(model: PreTrainedModel) -> None:
    """Keep position ids from flash attention, which at batch 1 takes gaps in them for packed sequences.

    Rotary embeddings are computed before, so nothing else in the attention needs them.
    """

    def drop(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {k: v for k, v in kwargs.items() if k != "position_ids"}

    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_pre_hook(drop, with_kwargs=True)
