"""Checks for those who write a model family: subclass, name the class, give a tiny checkpoint, run pytest.

class TestMine(BackboneConformance):
    family = Mine

    @pytest.fixture
    def checkpoint(self, tmp_path):
        return a_folder_with_a_few_random_weights(tmp_path)
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.backbones.forward import forward
from dllm_sampling.engine.sampler import Sampler
from dllm_sampling.engine.step import Step
from dllm_sampling.errors import CheckpointError
from dllm_sampling.loading.checkpoint import load_model
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.state.plan import ForwardPlan
from dllm_sampling.state.sampling import Sampling
from dllm_sampling.testing.predictions import prompts_for

_GEN_LENGTH = 12


class BackboneConformance:
    """What every model family must do.

    Attributes:
        family: The class.
        tolerance: How far logits that should be equal may lie apart, as a share of the largest; float32 on a
            CPU needs no more.

    Fixtures:
        `checkpoint`, a folder in the family's published format, which you give; the smaller the better.
        `config`, its config.json. `model`, what `load_model` makes of it.
    """

    family: ClassVar[type[Backbone]]
    tolerance: ClassVar[float] = 1e-4

    @pytest.fixture
    def checkpoint(self) -> Path:
        """The folder of a tiny checkpoint."""
        pytest.fail(
            f"{type(self).__name__} must define a fixture `checkpoint` that returns a checkpoint's folder."
        )

    @pytest.fixture
    def config(self, checkpoint: Path) -> dict[str, Any]:
        """The checkpoint's config.json."""
        found: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return found

    @pytest.fixture
    def model(self, checkpoint: Path) -> Backbone:
        """The loaded checkpoint, its forwards not compiled."""
        return load_model(checkpoint, compile="off")

    # What it says ----------------------------------------------------------------------------------

    def test_it_is_a_family(self) -> None:
        assert issubclass(self.family, Backbone), f"{self.family.__name__} must subclass Backbone."
        missing = ", ".join(sorted(self.family.__abstractmethods__))
        assert not inspect.isabstract(self.family), f"{self.family.__name__} does not define {missing}."
        assert re.fullmatch(r"[a-z][a-z0-9_]*", self.family.name), (
            f"name = {self.family.name!r}: names are lower case with underscores."
        )

    def test_it_matches_its_own_checkpoints_alone(self, config: dict[str, Any]) -> None:
        given = copy.deepcopy(config)
        assert self.family.matches(given), "matches must be true of the checkpoint's config.json."
        assert given == config, "matches changed the config that it was given."
        for other in ({}, {"model_type": "no_such_family"}):
            assert not self.family.matches(other), (
                f"matches is true of {other}: look at what your checkpoints alone say, such as model_type."
            )
        also = [
            n for n, f in registry().classes("backbone").items() if f is not self.family and f.matches(config)
        ]
        assert not also, (
            f"the family {', '.join(also)} matches the checkpoint too; the first found would load it."
        )

    def test_stock_says_what_computes_it(self, config: dict[str, Any]) -> None:
        given = copy.deepcopy(config)
        stock, stock_config, renaming = self.family.stock(given)
        assert given == config, "stock changed the config that it was given."
        fits = inspect.isclass(stock) and issubclass(stock, PreTrainedModel)
        assert fits, f"{stock!r} is no class of transformers."
        assert isinstance(stock_config, PretrainedConfig), "the second is the config of that class."
        for pattern in renaming:
            assert re.compile(pattern).groups <= 1, (
                f"{pattern!r}: transformers renames with one group at most."
            )

    def test_it_refuses_what_it_does_not_know(self, config: dict[str, Any]) -> None:
        try:
            self.family.stock({**copy.deepcopy(config), "no_such_key_of_any_model": 7})
        except CheckpointError:
            return
        pytest.fail(
            "a key of config.json that nobody knows was passed over, and it might change what is computed: "
            "refuse it, as `dllm_sampling.backbones.published.refuse_unknown` does."
        )

    def test_load_model_finds_it(self, model: Backbone) -> None:
        assert type(model) is self.family, f"load_model made a {type(model).__name__} of the checkpoint."

    def test_its_ids_can_be_used(self, model: Backbone) -> None:
        facts = model.facts
        assert 0 <= facts.mask_token_id < facts.vocab_size, "the mask id lies outside the vocabulary."
        assert facts.mask_token_id not in facts.eos_token_ids, "the mask id ends a text too."
        assert not bool(facts.allowed[facts.mask_token_id]), (
            "the mask id may be committed: leave it out of allowed."
        )
        assert all(0 <= i < facts.vocab_size for i in facts.eos_token_ids), (
            "an end lies outside the vocabulary."
        )
        assert all(bool(facts.allowed[i]) for i in facts.eos_token_ids), (
            "an end of a text may not be committed."
        )
        assert 0 <= facts.pad_token_id < facts.vocab_size, "the pad id lies outside the vocabulary."
        assert tuple(facts.allowed.shape) == (facts.vocab_size,), "allowed says something of every id."
        assert facts.max_length > 0, "max_length is the longest canvas."

    # What it computes ------------------------------------------------------------------------------

    def test_equal_calls_predict_the_same(self, model: Backbone) -> None:
        one, other = (self._first(model).observation.logits for _ in range(2))
        assert torch.equal(one, other), "two equal forwards differ: something draws, or dropout is on."

    def test_attention_goes_both_ways(self, model: Backbone) -> None:
        """The last token has an effect on what is predicted before it."""
        ids = torch.tensor([(prompts_for(model)[1] * 4)[:32]], device=model.facts.device)
        changed = ids.clone()
        changed[0, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else ids[0, 1]
        before = torch.arange(ids.shape[1] - 2 - model.shift, device=ids.device)[-1:]
        one, other = (self._rows(model, tokens, before) for tokens in (ids, changed))
        assert not torch.allclose(one, other, atol=self.tolerance * float(one.abs().max())), (
            "a token has no effect on the position before it: the stock class attends to the left alone. "
            "load_model sets config.is_causal = False; a stock class that does not read it does not fit."
        )

    def test_only_the_rows_asked_for_come_back(self, model: Backbone) -> None:
        ids = torch.tensor([prompts_for(model)[1], prompts_for(model)[1][::-1]], device=model.facts.device)
        width = ids.shape[1]
        every = self._rows(model, ids, torch.arange(width, device=ids.device))
        self._close(
            self._rows(model, ids, torch.tensor([4, 1], device=ids.device)), every[:, [4, 1]], "rows [n]"
        )
        each = torch.tensor([[0, 5], [7, 2]], device=ids.device)
        wanted = every.take_along_dim(each[..., None], 1)
        self._close(self._rows(model, ids, each), wanted, "rows [batch, n]")

    def test_its_shift_is_honoured(self, model: Backbone) -> None:
        """Row i predicts position i + shift; the first token of a text is read off its own row."""
        step = self._first(model, batch_size=1)
        tokens, columns = step.state.tokens, step.observation.positions.columns
        every = self._rows(model, tokens, torch.arange(tokens.shape[1], device=tokens.device))
        assert self.family.shift in (0, 1), f"shift = {self.family.shift}; it is 0 or 1."
        wanted = every.take_along_dim((columns - model.shift).clamp_min(0)[..., None], 1)
        self._close(step.observation.logits, wanted, "the logits that policies see")

    def test_padding_changes_nothing(self, model: Backbone) -> None:
        together = self._first(model)
        lengths = (together.state.valid.sum(1) - _GEN_LENGTH).tolist()
        for prompt in prompts_for(model):
            alone = self._first(model, [prompt]).observation.logits[0]
            beside = together.observation.logits[lengths.index(len(prompt))]
            self._close(alone, beside, f"{len(prompt)} tokens alone and beside longer prompts: their logits")

    def test_stored_keys_and_values_predict_the_same(self, model: Backbone) -> None:
        """Right after a forward over everything, a forward over the block alone sees the same."""
        step = self._first(model)
        state, region, sampling = step.state, step.region, Sampling()
        buffer = model.new_buffer(state.length)
        full = forward(model, state, region, ForwardPlan.full(state), buffer, sampling)
        block = forward(model, state, region, ForwardPlan.window(state, region, 0, 0), buffer, sampling)
        self._close(
            block.observation.logits, full.observation.logits, "from stored keys and values, the logits"
        )

    def test_every_cache_begins_alike(self, model: Backbone) -> None:
        """The first forward computes everything, whatever is stored of it."""
        plain = self._first(model).observation.logits
        for name, cls in registry().classes("cache").items():
            if all(not field.is_required() for field in cls.model_fields.values()):
                stored = self._first(model, cache=name).observation.logits
                self._close(stored, plain, f"with the cache {name!r}, the logits of the first forward")

    def test_it_decodes(self, model: Backbone) -> None:
        every = {"name": "interval", "policy": "dual", "interval": 1}
        results = [
            Sampler(model, cache=cache, unmasking={"name": "fixed_k", "k": 2}, stop_at_eos=False).generate(
                prompts_for(model), _GEN_LENGTH
            )
            for cache in ("none", every)
        ]
        assert torch.equal(results[0].sequences, results[1].sequences), (
            "with a refresh in every forward the text must be that of no cache at all."
        )
        masks = results[0].sequences[:, -_GEN_LENGTH:] == model.facts.mask_token_id
        assert not masks.any(), "masks are left in the text."

    # How -------------------------------------------------------------------------------------------

    @staticmethod
    def _first(model: Backbone, prompts: list[list[int]] | None = None, **settings: Any) -> Step:
        """The first step of a run."""
        given = {"cache": "none", "schedule": {"name": "fixed_blocks", "block_length": 8}, **settings}
        with Sampler(model, **given).steps(prompts or prompts_for(model), _GEN_LENGTH) as run:
            return next(run)

    @staticmethod
    @torch.no_grad()
    def _rows(model: Backbone, ids: Tensor, rows: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return model.logits(ids, places, None, None, rows).float()

    def _close(self, found: Tensor, wanted: Tensor, what: str) -> None:
        assert found.shape == wanted.shape, f"{what}: {list(found.shape)} and {list(wanted.shape)}."
        apart = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
        assert apart <= self.tolerance, (
            f"{what} lie {apart:.1e} of the largest apart; allowed {self.tolerance:.0e}."
        )
