"""Checks for those who write policies: subclass one class, give one fixture, run pytest.

    class TestMine(UnmaskingPolicyConformance):
        @pytest.fixture
        def policy(self):
            return Mine(threshold=0.8)

Every check decodes with the engine and says, where it fails, what to change. The policies that ship are
tested through the same classes; `tests/test_broken_policies.py` holds a policy for each check that it alone,
or it first, catches.
"""

from __future__ import annotations

import contextlib
import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dllm_sampling.backbones.base import Backbone
from dllm_sampling.engine import run_hooks
from dllm_sampling.engine.run import Run
from dllm_sampling.engine.sampler import Sampler
from dllm_sampling.engine.step import Step
from dllm_sampling.errors import DllmSamplingError
from dllm_sampling.plugins.nested import resolve
from dllm_sampling.policies.kinds import (
    BlockSchedule,
    CachePolicy,
    LogitsTransform,
    Observer,
    Policy,
    Score,
    UnmaskingPolicy,
    Wrapper,
)
from dllm_sampling.state.decoding_state import DecodingState
from dllm_sampling.state.observation import Observation
from dllm_sampling.state.result import GenerationResult
from dllm_sampling.testing.predictions import LENGTHS, PREDICTIONS, predicting, prompts_for, tiny_with
from dllm_sampling.testing.sync import SyncCounter
from dllm_sampling.testing.writes import watched

_GEN_LENGTH = 20
_BLOCKS = {"name": "fixed_blocks", "block_length": 8}
# Of what `hashed` predicts it commits some, and leaves some to the engine.
_RULE = {"name": "confidence_threshold", "threshold": 0.5}

Predicting = Callable[[str], Backbone]


class PolicyConformance:
    """What every policy must do. Subclass one of the classes below, which say how it is used.

    Attributes:
        settings: Further settings of the sampler in which the policy is tried, such as a schedule it needs.
        syncs_per_step: Host synchronisations that the policy itself makes in a step; shipped ones make none.

    Fixtures:
        `policy`, which you give. `tokenizer`, None unless you give one: the models of the checks then have
        its ids. `model`, a small random transformer unless you give another: the checks in which keys and
        values matter use it.
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

    @pytest.fixture
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """What `facts.tokenizer` is in the checks; give one where the policy needs it."""
        return None

    @pytest.fixture
    def model(self, tokenizer: PreTrainedTokenizerBase | None) -> Backbone:
        """The model in which keys and values matter."""
        return tiny_with(tokenizer)

    @pytest.fixture
    def predicted(self, tokenizer: PreTrainedTokenizerBase | None) -> Predicting:
        """Models whose predictions are known, by a name of `testing.predictions`."""
        return lambda name: predicting(name, tokenizer)

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
            try:
                setattr(policy, field, getattr(policy, field))
            except (ValueError, AttributeError):
                continue
            pytest.fail(f"{field} can be set: leave `frozen` in model_config as it is.")

    def test_its_settings_survive_yaml(self, policy: Policy) -> None:
        written = yaml.safe_dump(policy.model_dump(mode="json"))
        data = yaml.safe_load(written)
        data.pop("name", None)
        again = type(policy).model_validate(data)
        assert again == policy, f"written to YAML and read back it is another policy:\n{written}"

    def test_it_refuses_unknown_settings(self, policy: Policy) -> None:
        data = policy.model_dump(mode="json") | {"no_such_setting": 1}
        data.pop("name", None)
        try:
            type(policy).model_validate(data)
        except (ValueError, DllmSamplingError):
            return
        pytest.fail("a misspelt setting would be ignored: leave `extra` in model_config as it is.")

    # What it does --------------------------------------------------------------------------------

    def test_only_the_engine_writes(self, policy: Policy, predicted: Predicting) -> None:
        found: list[str] = []
        for name in ("hashed", "leaving"):
            # What fails for another reason is a matter of the next checks.
            with contextlib.suppress(DllmSamplingError):
                self._decode(watched(policy, found), predicted(name))
            assert not found, (
                f"{found[0]}: only the engine writes. Make new tensors (torch.where, masked_fill without an "
                "underscore, clone), and say what is to change in what the hook returns."
            )

    @pytest.mark.parametrize("distribution", [name for name in PREDICTIONS if name != "leaving"])
    def test_it_ends_whatever_the_model_predicts(
        self, policy: Policy, predicted: Predicting, distribution: str
    ) -> None:
        self._check(policy, predicted(distribution))

    def test_it_decodes_a_transformer_with_keys_and_values(self, policy: Policy, model: Backbone) -> None:
        self._check(policy, model)

    def test_a_seed_decides_everything(self, policy: Policy, predicted: Predicting) -> None:
        model, runs = predicted("hashed"), []
        for state in (0, 1, 0):  # of the global generators, which must not matter
            with _generators(state):
                runs.append(self._decode(policy, model, sampling={"temperature": 0.8}, seed=7).sequences)
            if len(runs) == 2 and torch.equal(*runs):
                return
        # What differs although the generators stood alike is a matter of the next check.
        assert not torch.equal(runs[0], runs[2]), (
            "the same seed gave two texts: draw from state.uniform(self, positions), never from the global "
            "generators of torch or Python."
        )

    def test_it_keeps_no_state_between_runs(self, policy: Policy, predicted: Predicting) -> None:
        model, runs = predicted("hashed"), []
        settings, of_class = copy.deepcopy(vars(policy)), copy.deepcopy(_class_values(policy, self.kind))
        prompts = prompts_for(model)
        for given, length in (
            (prompts, _GEN_LENGTH),
            (prompts[::-1], _GEN_LENGTH + 7),
            (prompts, _GEN_LENGTH),
        ):
            with _generators(0):
                runs.append(self._sampler(policy, model).generate(given, length))
        assert _same(vars(policy), settings), (
            "a run changed the policy itself: what a run remembers belongs into state.memory(self)."
        )
        assert _same(_class_values(policy, self.kind), of_class), (
            f"a run changed the class {type(policy).__name__}, and so the next run: what a run remembers "
            "belongs into state.memory(self)."
        )
        for name in ("sequences", "forward_of_position"):
            assert torch.equal(runs[0][name], runs[2][name]), (
                f"of two equal calls the second had other {name}: what a run remembers belongs into "
                "state.memory(self), never into the class, the module or a functools cache."
            )

    def test_a_row_does_not_depend_on_its_batch(self, policy: Policy, predicted: Predicting) -> None:
        for row, alone, together in self._rows(policy, predicted("hashed"), stop_at_eos=False):
            assert torch.equal(alone.sequences[0][-_GEN_LENGTH:], together.sequences[row][-_GEN_LENGTH:]), (
                f"row {row} is written differently alone and in a batch with shorter and longer prompts: "
                "work along the region's dimension only, take positions from state.position_ids, clocks "
                "from state.row_steps and state.block_steps, random numbers from state.uniform."
            )
            assert alone.row_forwards[0] == together.row_forwards[row], (
                f"row {row} takes {together.row_forwards[row]} forwards in a batch and "
                f"{alone.row_forwards[0]} alone: nothing of a row may depend on the others."
            )

    def test_rows_that_leave_take_their_memory_along(self, policy: Policy, predicted: Predicting) -> None:
        """Rows end at different times here; what was remembered must follow the rows that stay."""
        for row, alone, together in self._rows(policy, predicted("leaving")):
            assert torch.equal(alone.sequences[0][-_GEN_LENGTH:], together.sequences[row][-_GEN_LENGTH:]), (
                "a row is written differently once others have left: what is remembered of rows belongs into "
                "state.memory(self), whose tensors follow the rows; state.shared(self) does not."
            )

    def test_it_waits_for_no_device(self, policy: Policy, model: Backbone) -> None:
        run = self._steps(policy, model)
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

    # How -----------------------------------------------------------------------------------------

    def _sampler(self, policy: Policy, model: Backbone, **more: Any) -> Sampler:
        given = {"schedule": _BLOCKS, "unmasking": _RULE, **self.settings, **more}
        beside = given.pop("beside", ())
        given[self.slot] = [policy, *beside] if self.many else policy
        given.setdefault("batch_size", 3)
        return Sampler(model, **given)

    def _decode(self, policy: Policy, model: Backbone, *, seed: int = 0, **more: Any) -> GenerationResult:
        return self._sampler(policy, model, **more).generate(prompts_for(model), _GEN_LENGTH, seed=seed)

    def _steps(self, policy: Policy, model: Backbone, **more: Any) -> Run:
        return self._sampler(policy, model, **more).steps(prompts_for(model), _GEN_LENGTH)

    def _rows(
        self, policy: Policy, model: Backbone, **more: Any
    ) -> Iterator[tuple[int, GenerationResult, GenerationResult]]:
        """Each row's number, the row decoded alone, and all of them decoded together."""
        others = "beside" if self.slot == "wrappers" else "wrappers"
        more[others] = [*self.settings.get("wrappers", ()), _Uneven()]
        together = self._decode(policy, model, **more)
        for row, prompt in enumerate(prompts_for(model)):
            alone = self._sampler(policy, model, **more).generate([prompt], _GEN_LENGTH, places=[row])
            yield row, alone, together

    def _check(self, policy: Policy, model: Backbone, **more: Any) -> None:
        """Decode, and look at what the engine promises of every result."""
        sampler = self._sampler(policy, model, **more)
        result = sampler.generate(prompts_for(model), _GEN_LENGTH)
        unmasking = run_hooks.policies_of(sampler.settings).unmasking
        bound = unmasking.idle_steps(_GEN_LENGTH) + _GEN_LENGTH
        assert int(result.row_forwards.max()) <= bound, "a row took more steps than idle steps and targets."
        mask = model.facts.mask_token_id
        for row, prompt in enumerate(prompts_for(model)):
            given = result.sequences[row][:-_GEN_LENGTH][-len(prompt) :]
            assert given.tolist() == prompt, "the prompt changed."
        assert not (result.sequences[:, -_GEN_LENGTH:] == mask).any(), "masks are left in the text."


class _Uneven(Wrapper):
    """One row begins with its leftmost open target alone, so that rows get on at paces of their own."""

    name: ClassVar[str] = "uneven"

    def restrict(self, state: DecodingState, observation: Observation) -> Tensor:
        slow = (state.valid.sum(1) == min(LENGTHS) + _GEN_LENGTH) & (state.progress < 0.4)
        return (observation.masked.cumsum(1) <= 1) | ~slow[:, None]


class UnmaskingPolicyConformance(PolicyConformance):
    """For an unmasking policy; see `PolicyConformance`.

    Attributes:
        most_forced: The largest share of commits that the engine may have to make where every prediction is
            certain and stays as it is. 1 for a rule that leaves commits to the engine on purpose.
    """

    kind = UnmaskingPolicy
    slot = "unmasking"
    most_forced: ClassVar[float] = 0.2

    def test_it_chooses_what_is_committed(self, policy: UnmaskingPolicy, predicted: Predicting) -> None:
        results = (self._decode(policy, predicted(name), stop_at_eos=False) for name in _TELLING)
        assert self.most_forced >= 1 or any(result.forced < result.commits for result in results), (
            "every single commit was forced by the engine, so the rule chose none: select returned nothing "
            "that is eligible. Say `most_forced = 1` in the test where that is meant."
        )

    def test_it_waits_no_longer_than_it_declares(
        self, policy: UnmaskingPolicy, predicted: Predicting
    ) -> None:
        result = self._decode(policy, predicted("all certain"), stop_at_eos=False)
        idle = policy.idle_steps(_GEN_LENGTH)
        assert not idle or not result.forced or self.most_forced >= 1, (
            f"with idle_steps = {idle} it was still forced {result.forced} times where every prediction is "
            "certain: it waits longer than it declares."
        )
        assert result.forced_share <= self.most_forced, (
            f"{result.forced} of {result.commits} commits were forced where every prediction is certain: the "
            "rule leaves targets out, or waits without declaring it in idle_steps. Say `most_forced = "
            f"{result.forced_share:.2f}` in the test where that is meant."
        )

    def test_its_remasks_are_kept(self, policy: UnmaskingPolicy, predicted: Predicting) -> None:
        """A remask costs a step; the engine drops what `idle_steps` does not pay for."""
        run, asked = self._steps(policy, predicted("hashed"), stop_at_eos=False), 0
        for step in run:
            seen, remask = step.observation, step.decision.remask
            if remask is not None:
                asked += int((remask & seen.committed & seen.masked.any(1, keepdim=True)).sum())
        done = run.result.remasks
        assert done == asked, (
            f"it asked to mask {asked} committed positions again, and the engine did so with {done}: the "
            "others were not paid for. Declare in idle_steps how many steps a row may lose."
        )

    def test_it_works_on_any_schedule(self, policy: UnmaskingPolicy, predicted: Predicting) -> None:
        for schedule in ("whole_canvas", {"name": "fixed_blocks", "block_length": 7}):
            self._check(policy, predicted("hashed"), schedule=schedule)


# Under one of these every rule that chooses at all chooses something.
_TELLING = ("all certain", "hashed")


class ScoreConformance(PolicyConformance):
    """For a score; see `PolicyConformance`. It is tried in `fixed_k`."""

    kind = Score
    slot = "unmasking"

    def _sampler(self, policy: Policy, model: Backbone, **more: Any) -> Sampler:
        kind: Any = UnmaskingPolicy
        held = resolve(kind, {"name": "fixed_k", "k": 2, "score": policy})
        return super()._sampler(held, model, **more)


class CachePolicyConformance(PolicyConformance):
    """For a cache policy; see `PolicyConformance`.

    Attributes:
        leaves_open_targets_out: Whether forwards may skip open targets of the region on purpose.
        leaves_commits_stale: Whether what is committed is never computed again on purpose.
    """

    kind = CachePolicy
    slot = "cache"
    leaves_open_targets_out: ClassVar[bool] = False
    leaves_commits_stale: ClassVar[bool] = False

    def test_what_it_calls_a_refresh_is_one(self, policy: CachePolicy, model: Backbone) -> None:
        for step in self._steps(policy, model):
            state, plan = step.state, step.plan
            seen = state.valid if plan.visible is None else state.valid & plan.visible
            left_out = (seen & ~plan.mask(state)).any(1)
            called = torch.as_tensor(plan.refresh, device=left_out.device)
            assert not (left_out & called).any(), (
                "plan.refresh is true where visible positions are not computed: the count of refreshes would "
                "be wrong. Plan them, hide them with `visible`, or say refresh=False."
            )

    def test_what_it_calls_exact_is_exact(self, policy: CachePolicy, model: Backbone) -> None:
        """With the settings of `exact_with`, and as it is where it says `exact`."""
        said = [policy] if policy.exact else []
        if policy.exact_with is not None:
            own = {field: getattr(policy, field) for field in type(policy).model_fields}
            said.append(type(policy).model_validate({**own, **policy.exact_with}))
        for cache in said:
            mine = self._sampler(cache, model, unmasking={"name": "fixed_k", "k": 2})
            plain = Sampler(model, **{**_settings(mine), "cache": "none"})
            # Long enough that a window around a block does not hold it all.
            first, second = (s.generate(prompts_for(model), 4 * _GEN_LENGTH) for s in (mine, plain))
            assert torch.equal(first.sequences, second.sequences), (
                f"{cache!r} says that it is exact, and decodes to other tokens than no cache at all: "
                "`exact_with` names settings with which nothing that is stale is read, or is None."
            )

    def test_every_forward_predicts_what_is_open(self, policy: CachePolicy, model: Backbone) -> None:
        for step in self._steps(policy, model, unmasking={"name": "fixed_k", "k": 1}):
            stale = step.observation.masked & ~step.observation.fresh
            assert self.leaves_open_targets_out or not stale.any(), (
                "a forward left open targets of the region out, so that they cannot be committed: plan at "
                "least those. Say `leaves_open_targets_out = True` in the test where that is meant."
            )

    def test_what_was_committed_is_computed_again(self, policy: CachePolicy, model: Backbone) -> None:
        """A token keeps the entry of a mask until it is computed once more."""
        for step in self._steps(policy, model, unmasking={"name": "fixed_k", "k": 3}, batch_size=1):
            state, planned = step.state, step.plan.mask(step.state)
            if state.forward_index == 0:
                as_token = torch.zeros_like(planned)
            as_token = torch.where(planned, ~state.masked, as_token)
            committed = state.targets & ~state.masked
            last = _is_last(step)
            assert self.leaves_commits_stale or not last or not (committed & ~as_token).any(), (
                "at the end of the run committed tokens still had the keys and values of masks: refresh now "
                "and then, at the start of a block at least (region.starts_block). Say "
                "`leaves_commits_stale = True` in the test where that is meant."
            )


def _is_last(step: Step) -> bool:
    """Whether nothing is left to decode behind this step, for rules that are never forced."""
    opened = step.state.masked.sum(1)
    return bool((opened == (step.decision.commit & step.observation.eligible).sum(1)).all())


class BlockScheduleConformance(PolicyConformance):
    """For a block schedule; see `PolicyConformance`.

    Attributes:
        left_to_right: Whether a row's leftmost open target is always in its region.
        starts_blocks: Whether a region of new positions only starts a block; False for windows that slide on.
    """

    kind = BlockSchedule
    slot = "schedule"
    left_to_right: ClassVar[bool] = True
    starts_blocks: ClassVar[bool] = True

    def test_regions_hold_targets(self, policy: BlockSchedule, predicted: Predicting) -> None:
        for step in self._steps(policy, predicted("hashed")):
            positions = step.region.positions
            targets = positions.gather(step.state.targets)
            assert (targets | ~positions.inside).all(), "a region reaches beyond the targets."
            assert step.observation.masked.any(), "a region holds no open target of any row."

    def test_it_leaves_no_target_behind(self, policy: BlockSchedule, predicted: Predicting) -> None:
        for step in self._steps(policy, predicted("hashed"), unmasking={"name": "fixed_k", "k": 3}):
            state, seen = step.state, step.observation
            columns = torch.where(seen.masked, seen.positions.columns, state.length).amin(1)
            first = torch.where(state.masked, state.columns, state.length).amin(1)
            behind = seen.masked.any(1) & (columns > first)
            assert not self.left_to_right or not behind.any(), (
                "a region begins behind an open target, which the text then waits for: begin at "
                "state.next_open. Say `left_to_right = False` in the test where that is meant."
            )

    def test_blocks_are_numbered_in_order(self, policy: BlockSchedule, predicted: Predicting) -> None:
        """The progress guard commits in the lowest block first."""
        for step in self._steps(policy, predicted("hashed"), batch_size=1):
            if step.state.forward_index == 0:
                highest = -1
            inside = step.region.positions.inside[0]
            places = step.region.positions.columns[0][inside].argsort()
            blocks = step.region.blocks[0][inside][places]
            assert (blocks.diff() >= 0).all(), "a later position has a lower block: number them in order."
            assert int(blocks.max()) >= highest, "a later region has lower blocks: go on counting."
            highest = int(blocks.max())

    def test_a_block_starts_once(self, policy: BlockSchedule, predicted: Predicting) -> None:
        before: Tensor | None = None
        for step in self._steps(
            policy, predicted("hashed"), unmasking={"name": "fixed_k", "k": 3}, batch_size=1
        ):
            state, region = step.state, step.region
            here = region.positions.mask(state.length)
            if before is not None and before.shape == here.shape and state.forward_index:
                again = region.starts_block and torch.equal(before, here)
                assert not again, (
                    "starts_block is true of a region that is the same as before: caches would refresh in "
                    "every forward. Remember the block in state.memory(self)."
                )
                moved = not region.starts_block and not (before & here).any()
                assert not moved or not self.starts_blocks, (
                    "a region of new positions only does not start a block, so caches never refresh: set "
                    "starts_block. Say `starts_blocks = False` in the test where that is meant."
                )
            before = here

    def test_its_blocks_are_as_planned(self, policy: BlockSchedule, predicted: Predicting) -> None:
        given = {"unmasking": {"name": "fixed_k", "k": 3}, "stop_at_eos": False, "batch_size": 1}
        for step in self._steps(policy, predicted("hashed"), **given):
            state, region = step.state, step.region
            if state.targets_in_block is None:
                return
            if state.forward_index == 0:
                blocks = torch.full_like(state.tokens, -1)
            blocks = region.positions.put(blocks, region.blocks)
            if _is_last(step):
                counted = [
                    int((state.targets & (blocks == i)).sum()) for i in range(state.targets_in_block.shape[1])
                ]
                assert counted == state.targets_in_block[0].tolist(), (
                    f"plan_blocks said {state.targets_in_block[0].tolist()} targets a block, and the regions "
                    f"held {counted}: rules that plan ahead rely on it. Return None where it is not known."
                )

    def test_any_rule_can_fill_its_regions(self, policy: BlockSchedule, predicted: Predicting) -> None:
        for rule in (
            {"name": "fixed_k", "k": 5},
            {"name": "confidence_threshold", "threshold": 0.3},
            "remdm",
        ):
            self._check(policy, predicted("hashed"), unmasking=rule)


class LogitsTransformConformance(PolicyConformance):
    """For a logits transform; see `PolicyConformance`."""

    kind = LogitsTransform
    slot = "transforms"
    many = True


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

    def test_it_changes_nothing(self, policy: Observer, predicted: Predicting) -> None:
        for name in ("hashed", "leaving"):
            model = predicted(name)
            with_it = self._decode(policy, model)
            alone = Sampler(model, **{**_settings(self._sampler(policy, model)), "observers": ()})
            unwatched = alone.generate(prompts_for(model), _GEN_LENGTH)
            assert torch.equal(with_it.sequences, unwatched.sequences), (
                "with the observer another text is written: it may read everything and change nothing."
            )
            assert with_it.forwards == unwatched.forwards, (
                f"with the observer it takes {with_it.forwards} forwards and {unwatched.forwards} without: "
                "it may read everything and change nothing."
            )


def _settings(sampler: Sampler) -> dict[str, Any]:
    return {name: getattr(sampler.settings, name) for name in type(sampler.settings).model_fields}


class _generators:
    """The global generators from one seed; afterwards they go on as they were."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._before = torch.get_rng_state(), random.getstate()
        torch.manual_seed(self._seed)
        random.seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        torch.set_rng_state(self._before[0])
        random.setstate(self._before[1])


def _class_values(policy: Policy, kind: type[Policy]) -> dict[str, Any]:
    """What the policy's own classes hold that a run could change."""
    return {
        f"{owner.__name__}.{name}": value
        for owner in type(policy).__mro__
        if not issubclass(kind, owner)
        for name, value in vars(owner).items()
        if name[:2] != "__" and isinstance(value, _CHANGEABLE)
    }


_CHANGEABLE = (list, dict, set, bytearray, int, float, str, Tensor)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors compared by what they hold."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
