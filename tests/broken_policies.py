"""Policies, each broken in one way, and the check of the conformance suite that catches it."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from dllm_sampling import (
    BlockSchedule,
    CachePolicy,
    Decision,
    ForwardPlan,
    LogitsTransform,
    Observer,
    Region,
    Score,
    Source,
    UnmaskingPolicy,
    Wrapper,
    top_k,
)
from dllm_sampling.testing import (
    BlockScheduleConformance,
    CachePolicyConformance,
    LogitsTransformConformance,
    ObserverConformance,
    ScoreConformance,
    UnmaskingPolicyConformance,
    WrapperConformance,
)

SUITES = {
    UnmaskingPolicy: UnmaskingPolicyConformance,
    CachePolicy: CachePolicyConformance,
    BlockSchedule: BlockScheduleConformance,
    LogitsTransform: LogitsTransformConformance,
    Wrapper: WrapperConformance,
    Observer: ObserverConformance,
    Score: ScoreConformance,
}


def best(state, observation, k=1):
    return top_k(observation.log_confidence, observation.eligible, k)


def select(self, state, observation):
    return best(state, observation)


def plan_forward(self, state, region):
    return ForwardPlan.full(state) if region.starts_block else ForwardPlan.window(state, region, 0, 0)


SIZE = 8


def block_of(state):
    return (min(state.next_open) - state.first_target) // SIZE


def region_of(state, block, **more):
    start = state.first_target + block * SIZE
    given = {"block": block, "starts_block": bool(started(state, block))} | more
    return Region.between(state, start, min(start + SIZE, state.length), **given)


def started(state, block):
    """Whether nothing of the block is committed yet in any row; what a schedule may see without memory."""
    start = state.first_target + block * SIZE
    return state.block_forwards == 0 or min(state.next_open) == start


def plan_region(self, state):
    memory, block = state.shared(self), block_of(state)
    starts = memory.get("block") != block
    memory["block"] = block
    return region_of(state, block, starts_block=starts)


def transform(self, state, observation):
    return observation.logits * 1.0


OWN: dict[type, dict[str, Any]] = {
    UnmaskingPolicy: {"select": select},
    CachePolicy: {"plan_forward": plan_forward},
    BlockSchedule: {"plan_region": plan_region},
    LogitsTransform: {"transform": transform},
    Wrapper: {},
    Observer: {},
    Score: {"score": lambda self, state, observation: observation.log_confidence},
}


class Broken(NamedTuple):
    """What is wrong, whether no earlier check sees it, and the check that does, with its advice."""

    case: str
    first: bool
    base: type
    check: str
    advice: str
    build: Any


def policy(base, space, **settings):
    facts = {"name": "broken", "sources": (Source("ours"),), "rule": "as the test says."}
    annotations = {**dict.fromkeys(facts, ClassVar[Any]), **space.pop("__annotations__", {})}
    whole = {**facts, "__module__": __name__, "__annotations__": annotations}
    return type("Broken", (base,), whole | OWN[base] | space)(**settings)


FOUND: list[Broken] = []


def broken(base, check, advice, *, first=False, **settings):
    """Register what a function answers: the attributes of the policy's class."""

    def register(build):
        case = build.__name__
        FOUND.append(Broken(case, first, base, check, advice, lambda: policy(base, build(), **settings)))
        return build

    return register


# What it is ---------------------------------------------------------------------------------------

UP, CP, BS, LT, WR, OB = UnmaskingPolicy, CachePolicy, BlockSchedule, LogitsTransform, Wrapper, Observer
SC = Score


@broken(UP, "test_it_is_of_its_kind", "lower case with underscores", first=True)
def a_name_that_no_file_would_spell():
    return {"name": "Most-Confident"}


@broken(OB, "test_it_says_what_its_rule_is_and_whose", "whose rule it was", first=True)
def no_source():
    return {"sources": ()}


@broken(UP, "test_it_says_what_its_rule_is_and_whose", "as a formula", first=True)
def no_rule():
    return {"rule": ""}


@broken(UP, "test_its_settings_are_frozen", "leave `frozen`", first=True)
def settings_that_can_be_set():
    return {"model_config": ConfigDict(frozen=False), "__annotations__": {"k": int}, "k": 1}


@broken(UP, "test_its_settings_survive_yaml", "another policy", first=True, k=2)
def a_setting_that_is_not_written():
    return {"__annotations__": {"k": int}, "k": Field(1, exclude=True)}


@broken(CP, "test_it_refuses_unknown_settings", "leave `extra`", first=True)
def settings_that_are_ignored():
    return {"model_config": ConfigDict(extra="ignore")}


# Only the engine writes ---------------------------------------------------------------------------

ONLY = "test_only_the_engine_writes"


@broken(LT, ONLY, "wrote into observation.logits.*only the engine writes", first=True)
def a_transform_that_writes_the_logits():
    return {"transform": lambda self, state, observation: observation.logits.mul_(0.5)}


@broken(LT, ONLY, "wrote into observation.logits")
def a_transform_that_bans_in_place():
    def transform(self, state, observation):
        observation.logits[..., 0] = -torch.inf
        return observation.logits.clone()

    return {"transform": transform}


@broken(UP, ONLY, "wrote into observation.logits")
def a_rule_that_writes_the_logits():
    def select(self, state, observation):
        observation.logits[..., 1] += 1
        return best(state, observation)

    return {"select": select}


@broken(SC, ONLY, "Broken.score wrote into observation.logits", first=True)
def a_score_that_writes_the_logits():
    return {"score": lambda self, state, observation: observation.logits.exp_().amax(-1)}


@broken(UP, ONLY, "wrote into observation.tokens")
def a_rule_that_writes_the_candidates():
    def select(self, state, observation):
        observation.tokens.fill_(1)
        return observation.eligible

    return {"select": select}


@broken(UP, ONLY, "wrote into observation.eligible")
def a_rule_that_narrows_in_place():
    def select(self, state, observation):
        chosen = observation.eligible
        chosen &= observation.log_confidence > -1
        return chosen

    return {"select": select}


@broken(UP, ONLY, "wrote into state.tokens")
def a_rule_that_writes_the_canvas_itself():
    def select(self, state, observation):
        state.tokens.copy_(state.tokens)  # the same values: a write all the same
        return observation.eligible

    return {"select": select}


@broken(OB, ONLY, "wrote into state.tokens", first=True)
def an_observer_that_writes_tokens():
    def committed(self, state):
        state.tokens[:, -1] = 3

    return {"committed": committed}


@broken(OB, ONLY, "wrote into state.masked")
def an_observer_that_opens_targets():
    return {"block_started": lambda self, state: [state.masked.logical_or_(state.targets)]}


@broken(OB, ONLY, r"wrote into (region.positions.columns|state.columns)")
def an_observer_that_moves_positions():
    def block_finished(self, state, region):
        region.positions.columns.data[0, 0] += 1  # .data hides it from the tensor's version

    return {"block_finished": block_finished}


@broken(OB, ONLY, "wrote into state")
def an_observer_that_writes_when_rows_leave():
    return {"rows_selected": lambda self, state, rows: [state.committed_confidence.zero_()]}


@broken(WR, ONLY, "Broken.wrap_select wrote into observation.masked", first=True)
def a_wrapper_that_writes_behind_its_yield():
    def wrap_select(self, state, observation):
        chosen = yield
        observation.masked.zero_()
        return chosen

    return {"wrap_select": wrap_select}


@broken(CP, ONLY, "wrote into state.valid", first=True)
def a_cache_that_hides_in_place():
    def plan_forward(self, state, region):
        state.valid[:, 0] = False
        return ForwardPlan.full(state)

    return {"plan_forward": plan_forward}


@broken(BS, ONLY, "wrote into state", first=True)
def a_schedule_that_winds_the_clock():
    def plan_region_(self, state):
        state.row_steps.zero_()
        return plan_region(self, state)

    return {"plan_region": plan_region_}


# What it does -------------------------------------------------------------------------------------


@broken(UP, "test_it_ends_whatever_the_model_predicts", "division by zero", first=True)
def a_rule_that_fails_where_all_is_equal():
    def select(self, state, observation):
        1 / (float(observation.logits.amax()) - float(observation.logits.amin()))
        return observation.eligible

    return {"select": select}


@broken(BS, "test_it_ends_whatever_the_model_predicts", "no open target", first=True)
def a_schedule_that_skips_targets():
    def plan_region_(self, state):
        block = block_of(state)
        start = state.first_target + block * SIZE + 1  # the first of each is never offered
        return Region.between(state, start, min(start + SIZE - 1, state.length), block=block)

    return {"plan_region": plan_region_}


@broken(LT, "test_it_decodes_a_transformer_with_keys_and_values", "must match the size", first=True)
def a_transform_for_one_vocabulary():
    return {"transform": lambda self, state, observation: observation.logits + torch.zeros(12)}


SEED = "test_a_seed_decides_everything"


@broken(UP, SEED, "state.uniform", first=True)
def a_rule_that_draws_from_torch():
    def select(self, state, observation):
        return top_k(torch.rand(observation.masked.shape), observation.eligible, 1)

    return {"select": select}


@broken(UP, SEED, "state.uniform")
def a_rule_that_draws_from_python():
    def select(self, state, observation):
        return best(state, observation, random.randint(1, 4))

    return {"select": select}


@broken(LT, SEED, "state.uniform", first=True)
def a_transform_with_noise_of_its_own():
    def transform(self, state, observation):
        return observation.logits + torch.randn_like(observation.logits)

    return {"transform": transform}


@broken(SC, SEED, "state.uniform", first=True)
def a_score_that_draws_from_torch():
    return {"score": lambda self, state, observation: torch.rand(observation.masked.shape)}


KEEPS = "test_it_keeps_no_state_between_runs"


@broken(UP, KEEPS, "changed the class Broken", first=True)
def a_rule_that_counts_in_its_class():
    def select(self, state, observation):
        type(self).seen.append(1)
        return best(state, observation, 1 + len(self.seen) // 50)

    return {"select": select, "__annotations__": {"seen": ClassVar[list]}, "seen": []}


@broken(UP, KEEPS, "never into the class, the module or a functools cache", first=True)
def a_rule_that_counts_in_its_module():
    counted = []

    def select(self, state, observation):
        counted.append(1)
        return best(state, observation, 1 + len(counted) % 7)

    return {"select": select}


@broken(WR, KEEPS, "never into the class, the module or a functools cache", first=True)
def a_wrapper_that_counts_in_a_functools_cache():
    @functools.cache
    def counted():
        return []

    def restrict(self, state, observation):
        counted().append(1)
        return observation.positions.columns % 5 != len(counted()) % 5

    return {"restrict": restrict}


@broken(OB, KEEPS, "changed the class Broken", first=True)
def an_observer_that_counts_in_its_class():
    def committed(self):
        type(self).seen += 1

    return {"committed": committed, "__annotations__": {"seen": ClassVar[int]}, "seen": 0}


class Box:
    """Something that can be changed in place; no annotation says so."""

    def __init__(self, value=0):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Box) and self.value == other.value

    __hash__ = None


@broken(UP, KEEPS, "changed the policy itself", first=True, box=Box())
def a_rule_that_counts_in_a_setting():
    from typing import Any

    def select(self, state, observation):
        self.box.value += 1
        return observation.eligible

    box = Annotated[
        Any,
        BeforeValidator(lambda value: value if isinstance(value, Box) else Box(value)),
        PlainSerializer(lambda box: box.value),
    ]
    return {"select": select, "__annotations__": {"box": box}}


MATES = "test_a_row_does_not_depend_on_its_batch"


@broken(UP, MATES, "written differently alone", first=True)
def a_rule_that_looks_at_its_batch():
    def select(self, state, observation):
        return observation.log_confidence >= observation.log_confidence.mean()

    return {"select": select}


@broken(UP, MATES, "clocks from state.row_steps")
def a_rule_that_counts_columns():
    def select(self, state, observation):
        return top_k((observation.positions.columns * 7919 % 31).float(), observation.eligible, 1)

    return {"select": select}


@broken(UP, MATES, "clocks from state.row_steps")
def a_rule_by_the_batchs_clock():
    def select(self, state, observation):
        return best(state, observation, 1 + state.forward_index % 3)

    return {"select": select}


@broken(LT, MATES, "written differently alone", first=True)
def a_transform_by_batch_size():
    def transform(self, state, observation):
        return observation.logits * (0.4 + 0.6 * state.batch)

    return {"transform": transform}


@broken(BS, MATES, "", first=True)
def a_schedule_by_batch_size():
    def plan_region_(self, state):
        start, size = min(state.next_open), 3 + state.batch
        return Region.between(state, start, min(start + size, state.length), block=0, starts_block=True)

    return {"plan_region": plan_region_}


LEAVE = "test_rows_that_leave_take_their_memory_along"


@broken(UP, LEAVE, "follow the rows", first=True)
def a_rule_whose_memory_stays_behind():
    def select(self, state, observation):
        memory = state.shared(self)
        if "pace" not in memory:
            memory["pace"] = [int(n) // 2 % 3 + 1 for n in state.valid.sum(1)]  # not re-indexed
        pace = torch.tensor(memory["pace"][: state.batch]).where(state.row_steps < 5, 1)
        return best(state, observation, pace)

    return {"select": select}


WAITS = "test_it_waits_for_no_device"


@broken(UP, WAITS, "Stay on tensors", first=True)
def a_rule_that_reads_a_tensor():
    def select(self, state, observation):
        return (
            observation.eligible if observation.log_confidence.amin().item() > 0 else best(state, observation)
        )

    return {"select": select}


@broken(OB, WAITS, "Stay on tensors", first=True)
def an_observer_that_reads_every_step():
    return {"committed": lambda self, decision: decision.commit.tolist() and None}


# Unmasking policies -------------------------------------------------------------------------------


@broken(UP, "test_it_chooses_what_is_committed", "every single commit was forced", first=True)
def a_rule_that_never_commits():
    return {"select": lambda self, state, observation: observation.eligible & False}


@broken(UP, "test_it_chooses_what_is_committed", "every single commit was forced")
def a_rule_that_commits_what_is_not_open():
    return {"select": lambda self, state, observation: ~observation.masked}


WAITING = "test_it_waits_no_longer_than_it_declares"


@broken(UP, WAITING, "it waits longer than it declares", first=True)
def a_rule_that_waits_longer_than_it_says():
    def select(self, state, observation):
        return observation.eligible & (state.block_steps >= 6)[:, None]

    return {"select": select, "idle_steps": lambda self, targets: 4}


@broken(UP, WAITING, "without declaring it in idle_steps")
def a_rule_that_waits_and_says_nothing():
    def select(self, state, observation):
        return observation.eligible & (state.block_steps >= 3)[:, None]

    return {"select": select}


@broken(UP, WAITING, "leaves targets out")
def a_rule_that_skips_targets():
    def select(self, state, observation):
        position = observation.positions.gather(state.position_ids)
        return observation.eligible & (position % 3 > 0)

    return {"select": select}


@broken(UP, "test_its_remasks_are_kept", "Declare in idle_steps", first=True)
def a_rule_that_remasks_on_credit():
    def select(self, state, observation):
        remask = observation.committed & (observation.committed.cumsum(1) == 1)
        return Decision(best(state, observation), remask=remask & (state.row_steps % 2 == 1)[:, None])

    return {"select": select}


@broken(UP, "test_it_works_on_any_schedule", "", first=True)
def a_rule_for_blocks_of_eight():
    def select(self, state, observation):
        weights = torch.arange(float(SIZE))[: observation.masked.shape[1]]
        return top_k(observation.log_confidence + weights, observation.eligible, 1)

    return {"select": select}


# Caches -------------------------------------------------------------------------------------------


@broken(CP, "test_what_it_calls_a_refresh_is_one", "count of refreshes would be wrong", first=True)
def a_cache_that_claims_a_refresh():
    def plan_forward(self, state, region):
        if region.starts_block:
            return ForwardPlan.full(state)
        return ForwardPlan(region.positions, refresh=True)

    return {"plan_forward": plan_forward}


@broken(CP, "test_what_it_calls_a_refresh_is_one", "count of refreshes would be wrong")
def a_cache_that_claims_a_refresh_of_each_row():
    def plan_forward(self, state, region):
        if region.starts_block:
            return ForwardPlan.full(state)
        return ForwardPlan(region.positions, refresh=torch.ones(state.batch).bool())

    return {"plan_forward": plan_forward}


@broken(CP, "test_what_it_calls_exact_is_exact", "decodes to other tokens than no cache", first=True)
def a_cache_that_claims_to_be_exact():
    return {"exact": True, "__annotations__": {"exact": ClassVar[bool]}}


@broken(CP, "test_every_forward_predicts_what_is_open", "plan at least those", first=True)
def a_cache_that_plans_fewer_positions():
    def plan_forward(self, state, region):
        if region.starts_block:
            return ForwardPlan.full(state)
        first = torch.where(state.masked, state.columns, state.length).amin(1, keepdim=True)
        near = (first + torch.arange(2)).where(state.masked.any(1, keepdim=True), -1)
        return ForwardPlan(near.where(near < state.length, -1))

    return {"plan_forward": plan_forward}


@broken(CP, "test_what_was_committed_is_computed_again", "refresh now and then", first=True)
def a_cache_that_never_refreshes():
    def plan_forward(self, state, region):
        return (
            ForwardPlan.full(state) if state.forward_index == 0 else ForwardPlan.window(state, region, 0, 0)
        )

    return {"plan_forward": plan_forward}


# Schedules ----------------------------------------------------------------------------------------


@broken(BS, "test_regions_hold_targets", "beyond the targets", first=True)
def a_schedule_that_offers_the_prompt():
    def plan_region_(self, state):
        block = block_of(state)
        start = state.first_target + block * SIZE
        memory = state.shared(self)
        starts, memory["block"] = memory.get("block") != block, block
        return Region.between(
            state, start - 1, min(start + SIZE, state.length), block=block, starts_block=starts
        )

    return {"plan_region": plan_region_}


@broken(BS, "test_it_leaves_no_target_behind", "begin at state.next_open", first=True)
def a_schedule_that_goes_back():
    def plan_region_(self, state):
        last = (state.masked * state.columns).topk(SIZE).values.sort(1).values  # from the end of the text on
        positions = last.masked_fill(last == 0, -1)
        return Region(positions, torch.zeros_like(positions), state.forward_index == 0)

    return {"plan_region": plan_region_}


@broken(BS, "test_blocks_are_numbered_in_order", "go on counting", first=True)
def a_schedule_that_counts_backwards():
    def plan_region_(self, state):
        region = plan_region(self, state)
        return replace(region, blocks=9 - region.blocks)

    return {"plan_region": plan_region_}


@broken(BS, "test_blocks_are_numbered_in_order", "number them in order")
def a_schedule_that_numbers_positions_backwards():
    def plan_region_(self, state):
        region = plan_region(self, state)
        return replace(region, blocks=99 - region.positions.columns)

    return {"plan_region": plan_region_}


@broken(BS, "test_a_block_starts_once", "caches never refresh", first=True)
def a_schedule_that_never_ends_a_block():
    def plan_region_(self, state):
        return region_of(state, block_of(state), starts_block=False)

    return {"plan_region": plan_region_}


@broken(BS, "test_a_block_starts_once", "refresh in every forward", first=True)
def a_schedule_that_starts_its_block_again():
    def plan_region_(self, state):
        return region_of(state, block_of(state), starts_block=True)

    return {"plan_region": plan_region_}


@broken(BS, "test_its_blocks_are_as_planned", "Return None where it is not known", first=True)
def a_schedule_that_plans_other_blocks():
    def plan_blocks(self, state):
        return torch.full((state.batch, 5), 7)

    return {"plan_blocks": plan_blocks}


@broken(BS, "test_any_rule_can_fill_its_regions", "", first=True)
def a_schedule_that_counts_on_commits_to_stay():
    def plan_region_(self, state):
        before, left = state.shared(self).get("left"), state.carried(self)
        state.shared(self)["left"] = left
        state.carry(self, state.masked.sum(1, keepdim=True))
        if before and len(before) == len(left) and before == left:
            raise IndexError("a step passed and nothing was done")
        return plan_region(self, state)

    return {"plan_region": plan_region_}


# Observers ----------------------------------------------------------------------------------------


@broken(OB, "test_it_changes_nothing", "read everything and change nothing", first=True)
def an_observer_that_changes_a_setting():
    def begin(self, state):
        vars(state)["stop_at_eos"] = False

    return {"begin": begin}
