"""Checks for those who write strategies: subclass one class, give one fixture, run pytest.

    class TestMine(UnmaskingPolicyConformance):
        @pytest.fixture
        def policy(self):
            return Mine(threshold=0.8)

Every check decodes with the engine and says, where it fails, what to change. The policies that ship are
tested through the same classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.engine import run_hooks
from dllm_sampling.engine.sampler import Sampler
from dllm_sampling.engine.step import Step
from dllm_sampling.errors import DllmSamplingError
from dllm_sampling.policies.kinds import (
    BlockSchedule,
    CachePolicy,
    LogitsTransform,
    Observer,
    Policy,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.state.result import GenerationResult
from dllm_sampling.testing.chosen import ChosenModel
from dllm_sampling.testing.sync import SyncCounter
from dllm_sampling.testing.tiny import tiny_model

_LENGTHS = (3, 9, 5)
_GEN_LENGTH = 20
_VOCABULARY = 12


def _hashed(tokens: Tensor, position_ids: Tensor) -> Tensor:
    """Predictions that depend on the whole canvas and on the position, confident in places."""
    # Padding has position 0, so that it does not enter.
    context = (tokens * position_ids).sum(1, keepdim=True) % 9973
    seeds = (context * 31 + position_ids)[..., None] * 7919 + torch.arange(_VOCABULARY) * 104729
    return torch.sin(seeds.double() * 12.9898).float() * 6


def _equal(tokens: Tensor, position_ids: Tensor) -> Tensor:
    return torch.zeros(*tokens.shape, _VOCABULARY)


def _certain(tokens: Tensor, position_ids: Tensor) -> Tensor:
    wanted = position_ids % (_VOCABULARY - 2)
    return torch.nn.functional.one_hot(wanted, _VOCABULARY).float() * 1e4


def _extreme(tokens: Tensor, position_ids: Tensor) -> Tensor:
    values = _hashed(tokens, position_ids)
    return torch.where(values > 0, values * 1e4, -torch.inf).index_fill(-1, torch.tensor([1]), 0.0)


def _ending(tokens: Tensor, position_ids: Tensor) -> Tensor:
    values = _hashed(tokens, position_ids)
    values[..., _VOCABULARY - 2] += 4  # the end of sequence, early and often
    return values


DISTRIBUTIONS = {
    "hashed": _hashed, "all equal": _equal, "all certain": _certain, "extreme": _extreme, "ending": _ending,
}  # fmt: skip


class PolicyConformance:
    """What every policy must do. Subclass one of the classes below, which say how it is used.

    Attributes:
        settings: Further settings of the sampler in which the policy is tried, such as a schedule it needs.
        syncs_per_step: Host synchronisations that the policy itself makes in a step; shipped ones make none.
    """

    settings: ClassVar[Mapping[str, Any]] = {}
    syncs_per_step: ClassVar[int] = 0
    kind: ClassVar[type[Policy]]
    slot: ClassVar[str]
    many: ClassVar[bool] = False

    @pytest.fixture
    def policy(self) -> Policy:
        """The instance to be tried."""
        pytest.fail(
            f"{type(self).__name__} must define a fixture `policy` that returns the instance to test."
        )

    # What it is ----------------------------------------------------------------------------------

    def test_it_is_of_its_kind(self, policy: Policy) -> None:
        assert isinstance(policy, self.kind), f"{type(policy).__name__} must subclass {self.kind.__name__}."
        assert re.fullmatch(r"[a-z][a-z0-9_]*", policy.name), (
            f"name = {policy.name!r}: names are lower case with underscores; config files use them."
        )

    def test_it_says_what_its_rule_is_and_whose(self, policy: Policy) -> None:
        """By itself: what it inherits was said of another rule."""
        own = vars(type(policy))
        assert own.get("sources"), (
            "give the class `sources: ClassVar[tuple[Source, ...]]`, with the paper, "
            '(Source("Fast-dLLM", arxiv="2505.22618"),), or (Source("ours"),): who reads a result wants to '
            "know whose rule it was."
        )
        # An observer decides nothing.
        assert own.get("rule") or self.kind is Observer, (
            "say what it does as a formula: give the class "
            '`rule: ClassVar[str] = "commit {i : c_i >= threshold}."`'
        )

    def test_its_settings_are_frozen(self, policy: Policy) -> None:
        for field in type(policy).model_fields:
            with pytest.raises(Exception, match="frozen"):
                setattr(policy, field, getattr(policy, field))

    def test_its_settings_survive_yaml(self, policy: Policy) -> None:
        written = yaml.safe_dump(policy.model_dump(mode="json"))
        data = yaml.safe_load(written)
        data.pop("name", None)
        again = type(policy).model_validate(data)
        assert again == policy, f"written to YAML and read back it is another policy:\n{written}"

    def test_it_refuses_unknown_settings(self, policy: Policy) -> None:
        data = policy.model_dump(mode="json") | {"no_such_setting": 1}
        data.pop("name", None)
        with pytest.raises((ValueError, DllmSamplingError)):
            type(policy).model_validate(data)

    # What it does --------------------------------------------------------------------------------

    @pytest.mark.parametrize("distribution", DISTRIBUTIONS)
    def test_it_ends_whatever_the_model_predicts(self, policy: Policy, distribution: str) -> None:
        model = ChosenModel(DISTRIBUTIONS[distribution], _VOCABULARY)
        for size in (1, 3):
            result = self._decode(policy, model, batch_size=size)
            self._check(policy, model, result)

    def test_it_decodes_a_transformer_with_keys_and_values(self, policy: Policy) -> None:
        self._check(policy, tiny_model(), self._decode(policy, tiny_model()))

    def test_it_keeps_no_state_between_runs(self, policy: Policy) -> None:
        before = dict(vars(policy))
        model = ChosenModel(_hashed, _VOCABULARY)
        sampler = self._sampler(policy, model)
        first, second = (sampler.generate(_prompts(), _GEN_LENGTH) for _ in range(2))
        assert torch.equal(first.sequences, second.sequences), (
            "a second run wrote something else: what a run remembers belongs into state.memory(self)."
        )
        assert torch.equal(first.forward_of_position, second.forward_of_position)
        assert vars(policy) == before, "the run changed the policy itself: keep state in state.memory(self)."

    def test_a_row_does_not_depend_on_its_batch(self, policy: Policy) -> None:
        model = ChosenModel(_hashed, _VOCABULARY)
        together = self._decode(policy, model, batch_size=3)
        for row, prompt in enumerate(_prompts()):
            alone = self._sampler(policy, model).generate([prompt], _GEN_LENGTH, places=[row])
            assert torch.equal(alone.sequences[0][-_GEN_LENGTH:], together.sequences[row][-_GEN_LENGTH:]), (
                f"row {row} is written differently alone and in a batch with shorter and longer prompts: "
                "work along the region's dimension only, take positions from observation.positions, clocks "
                "from state.row_steps and state.block_steps, random numbers from state.uniform."
            )
            assert alone.row_forwards[0] == together.row_forwards[row]

    def test_a_seed_decides_everything(self, policy: Policy) -> None:
        model = ChosenModel(_hashed, _VOCABULARY)
        sampling = {"temperature": 0.8}
        runs = []
        for state in (0, 1):
            torch.manual_seed(state)  # the global generator must not matter
            runs.append(
                self._sampler(policy, model, sampling=sampling).generate(_prompts(), _GEN_LENGTH, seed=7)
            )
        assert torch.equal(runs[0].sequences, runs[1].sequences), (
            "the same seed gave two texts: draw from state.uniform(self, positions), never from torch's "
            "global generator."
        )

    def test_it_waits_for_no_device(self, policy: Policy) -> None:
        run = self._sampler(policy, tiny_model()).steps(_prompts(), _GEN_LENGTH)
        next(run)
        while True:
            with SyncCounter() as counter:
                step = next(run, None)
            if step is None:
                break
            allowed = 1 + self.syncs_per_step
            assert counter.total <= allowed, (
                f"a step made {counter.total} host synchronisations, {allowed} are declared: "
                f"{dict(counter.counts)}. Stay on tensors; integers come to the host with state.carry."
            )

    def test_rows_that_leave_take_their_memory_along(self, policy: Policy) -> None:
        """Rows end at different times here; what was remembered must follow the rows that stay."""
        model = ChosenModel(_ending, _VOCABULARY)
        together = self._decode(policy, model, batch_size=3)
        for row, prompt in enumerate(_prompts()):
            alone = self._sampler(policy, model).generate([prompt], _GEN_LENGTH, places=[row])
            assert torch.equal(alone.sequences[0][-_GEN_LENGTH:], together.sequences[row][-_GEN_LENGTH:]), (
                "a row is written differently once others have left: tensors in state.memory(self) need the "
                "batch as their first dimension."
            )

    # How -----------------------------------------------------------------------------------------

    def _sampler(self, policy: Policy, model: Backbone, **more: Any) -> Sampler:
        given = {"schedule": {"name": "fixed_blocks", "block_length": 8}, **self.settings, **more}
        given[self.slot] = [policy] if self.many else policy
        given.setdefault("batch_size", 3)
        return Sampler(model, **given)

    def _decode(self, policy: Policy, model: Backbone, **more: Any) -> GenerationResult:
        return self._sampler(policy, model, **more).generate(_prompts(), _GEN_LENGTH)

    def _check(self, policy: Policy, model: Backbone, result: GenerationResult) -> None:
        sampler = self._sampler(policy, model)
        unmasking = run_hooks.policies_of(sampler.settings).unmasking
        bound = unmasking.idle_steps(_GEN_LENGTH) + _GEN_LENGTH
        assert int(result.row_forwards.max()) <= bound
        mask = model.facts.mask_token_id
        for row, prompt in enumerate(_prompts()):
            given = result.sequences[row][:-_GEN_LENGTH][-len(prompt) :]
            assert given.tolist() == prompt, "the prompt changed."
        assert not (result.sequences[:, -_GEN_LENGTH:] == mask).any(), "masks are left in the text."


def _prompts() -> list[list[int]]:
    return [[(i * 7 + j) % 9 for j in range(n)] for i, n in enumerate(_LENGTHS)]


class UnmaskingPolicyConformance(PolicyConformance):
    """For an unmasking policy; see `PolicyConformance`."""

    kind = UnmaskingPolicy
    slot = "unmasking"

    def test_it_answers_for_the_region(self, policy: UnmaskingPolicy) -> None:
        for step in self._steps(policy):
            commit = step.decision.commit
            assert commit.dtype == torch.bool, "select returns a bool mask or a Decision."
            assert commit.shape == step.observation.masked.shape

    def test_its_idle_steps_are_enough(self, policy: UnmaskingPolicy) -> None:
        """Forced commits happen where a rule picks nothing; a rule that means to wait must declare it."""
        assert policy.idle_steps(_GEN_LENGTH) >= 0, "idle_steps is a number of steps, at least 0."
        assert isinstance(policy.idle_steps(1), int)

    def test_it_works_on_any_schedule(self, policy: UnmaskingPolicy) -> None:
        model = ChosenModel(_hashed, _VOCABULARY)
        for schedule in ("whole_canvas", {"name": "fixed_blocks", "block_length": 7}):
            self._check(policy, model, self._decode(policy, model, schedule=schedule))

    def _steps(self, policy: Policy) -> Iterator[Step]:
        model = ChosenModel(_hashed, _VOCABULARY)
        yield from self._sampler(policy, model).steps(_prompts(), _GEN_LENGTH)


class CachePolicyConformance(PolicyConformance):
    """For a cache policy; see `PolicyConformance`."""

    kind = CachePolicy
    slot = "cache"

    def test_refreshed_in_every_forward_it_is_exact(self, policy: CachePolicy) -> None:
        every = {"name": "interval", "policy": policy, "interval": 1}
        mine = self._sampler(policy, tiny_model(), unmasking={"name": "fixed_k", "k": 2})
        refreshed = Sampler(tiny_model(), **{**_settings(mine), "cache": every})
        exact = Sampler(tiny_model(), **{**_settings(mine), "cache": "none"})
        first, second = (s.generate(_prompts(), _GEN_LENGTH) for s in (refreshed, exact))
        assert torch.equal(first.sequences, second.sequences), (
            "with a refresh in every forward the tokens must be those of no cache at all."
        )

    def test_what_it_calls_exact_is_exact(self, policy: CachePolicy) -> None:
        """With the settings of `exact_with`, and as it is where it says `exact`."""
        said = [policy] if policy.exact else []
        if policy.exact_with is not None:
            own = {field: getattr(policy, field) for field in type(policy).model_fields}
            said.append(type(policy).model_validate({**own, **policy.exact_with}))
        for cache in said:
            mine = self._sampler(cache, tiny_model(), unmasking={"name": "fixed_k", "k": 2})
            plain = Sampler(tiny_model(), **{**_settings(mine), "cache": "none"})
            # Long enough that a window around a block does not hold it all.
            first, second = (s.generate(_prompts(), 4 * _GEN_LENGTH) for s in (mine, plain))
            assert torch.equal(first.sequences, second.sequences), (
                f"{cache!r} says that it is exact, and decodes to other tokens than no cache at all: "
                "`exact_with` names settings with which nothing that is stale is read, or is None."
            )

    def test_every_forward_predicts_what_is_open(self, policy: CachePolicy) -> None:
        for step in self._sampler(policy, tiny_model()).steps(_prompts(), _GEN_LENGTH):
            stale = step.observation.masked & ~step.observation.fresh
            assert not stale.all(1).any() or not stale.any(), (
                "a forward computed none of a row's open targets in the region: plan at least those."
            )


class BlockScheduleConformance(PolicyConformance):
    """For a block schedule; see `PolicyConformance`."""

    kind = BlockSchedule
    slot = "schedule"

    def test_regions_hold_targets(self, policy: BlockSchedule) -> None:
        model = ChosenModel(_hashed, _VOCABULARY)
        first = True
        for step in self._sampler(policy, model).steps(_prompts(), _GEN_LENGTH):
            assert step.region.starts_block or not first, "the first region of a run must start a block."
            first = False
            inside = step.region.positions.inside
            targets = step.region.positions.gather(step.state.targets)
            assert (targets | ~inside).all(), "a region reaches beyond the targets."
            assert step.observation.masked.any(), "a region holds no open target of any row."

    def test_any_rule_can_fill_its_regions(self, policy: BlockSchedule) -> None:
        model = ChosenModel(_hashed, _VOCABULARY)
        for rule in ({"name": "fixed_k", "k": 3}, {"name": "confidence_threshold", "threshold": 0.3}):
            self._check(policy, model, self._decode(policy, model, unmasking=rule))


class LogitsTransformConformance(PolicyConformance):
    """For a logits transform; see `PolicyConformance`."""

    kind = LogitsTransform
    slot = "transforms"
    many = True

    def test_it_leaves_the_given_logits_alone(self, policy: LogitsTransform) -> None:
        seen: list[tuple[Tensor, Tensor]] = []

        class Spy(type(policy)):  # type: ignore[misc]  # a class made of an instance's
            name: ClassVar[str] = "spy"

            def transform(self, state: Any, observation: Any) -> Tensor:
                before = observation.logits.clone()
                changed: Tensor = super().transform(state, observation)
                seen.append((before, observation.logits))
                assert changed.shape == before.shape, "transform returns logits of the same shape."
                assert changed.is_floating_point()
                return changed

        data = policy.model_dump(mode="json")
        data.pop("name", None)
        self._decode(Spy.model_validate(data), ChosenModel(_hashed, _VOCABULARY))
        assert seen
        assert all(torch.equal(before, after) for before, after in seen), (
            "transform changed the logits it was given: return new ones."
        )


class WrapperConformance(PolicyConformance):
    """For a wrapper; see `PolicyConformance`."""

    kind = Wrapper
    slot = "wrappers"
    many = True


class ObserverConformance(PolicyConformance):
    """For an observer; see `PolicyConformance`. It must not change what is written."""

    kind = Observer
    slot = "observers"
    many = True

    def test_it_changes_nothing(self, policy: Observer) -> None:
        model = ChosenModel(_hashed, _VOCABULARY)
        watched = self._decode(policy, model)
        alone = Sampler(model, **{**_settings(self._sampler(policy, model)), "observers": ()})
        assert torch.equal(watched.sequences, alone.generate(_prompts(), _GEN_LENGTH).sequences)


def _settings(sampler: Sampler) -> dict[str, Any]:
    return {name: getattr(sampler.settings, name) for name in type(sampler.settings).model_fields}
