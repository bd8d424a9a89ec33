"""The engine's promises, one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from dllm_sampling.strategies import ConfidenceThreshold, DreamSchedule, FixedK
from hypothesis import given
from hypothesis import strategies as st

from dllm_sampling import (
    BlockSchedule,
    CachePolicy,
    Decision,
    DecodingError,
    ForwardPlan,
    Observer,
    PromptError,
    Region,
    Sampler,
    UnmaskingPolicy,
)
from tests.models import hashed, prompts_of, table, tiny

UNMASKING = [
    {"name": "confidence_threshold", "threshold": 0.3},
    {"name": "factor", "factor": 1.5},
    {"name": "fixed_k", "k": 3},
    {"name": "fixed_k", "steps": 9, "score": "random"},
    {"name": "fixed_k", "k": 2, "score": "entropy"},
    {"name": "dream_schedule", "steps": 7, "alg": "topk_margin"},
    {"name": "dream_schedule", "steps": 6, "alg": "origin"},
]
CACHES = ["none", "prefix", "dual", {"name": "interval", "policy": "dual", "interval": 3}]
BLOCKS = {"name": "fixed_blocks", "block_length": 8}


def name_of(value):
    return value if isinstance(value, str) else "-".join(str(v) for v in value.values())


# 1. It ends -------------------------------------------------------------------------------------


class Idle(UnmaskingPolicy):
    """Commits nothing, ever."""

    name: ClassVar[str] = "idle"
    patience: int = 0

    def select(self, state, observation):
        return torch.zeros_like(observation.masked)

    def idle_steps(self, targets):
        return self.patience


class Undoing(UnmaskingPolicy):
    """Commits two and masks again everything it committed before."""

    name: ClassVar[str] = "undoing"
    patience: int = 20

    def select(self, state, observation):
        commit = torch.zeros_like(observation.masked)
        commit[:, :2] = True
        return Decision(commit, remask=observation.committed)

    def idle_steps(self, targets):
        return self.patience


@pytest.mark.parametrize("patience", [0, 5])
def test_a_policy_that_commits_nothing_is_forced_from_the_left_block_and_counted(patience):
    sampler = Sampler(tiny(), unmasking=Idle(patience=patience), schedule=BLOCKS, stop_at_eos=False)
    result = sampler.generate(prompts_of([9]), gen_length=16)
    assert result.forced == 16
    assert result.forwards == 16 + patience
    assert (result.forward_of_position[0, :8] < 8 + patience).all()


@given(patience=st.integers(0, 30), gen_length=st.integers(1, 20), width=st.integers(1, 9))
def test_no_row_takes_more_than_idle_steps_and_targets(patience, gen_length, width):
    sampler = Sampler(
        hashed(),
        unmasking=Undoing(patience=patience),
        schedule={"name": "fixed_blocks", "block_length": width},
        stop_at_eos=False,
    )
    result = sampler.generate([[1, 2, 3], [4]], gen_length=gen_length)
    assert (result.row_forwards <= gen_length + patience).all()
    assert (result.forward_of_position >= 0).all()
    assert not (result.sequences == sampler.model.facts.mask_token_id).any()


@pytest.mark.parametrize("unmasking", UNMASKING, ids=name_of)
@pytest.mark.parametrize("cache", CACHES, ids=name_of)
def test_every_shipped_policy_ends_and_writes_every_target(unmasking, cache):
    sampler = Sampler(tiny(), unmasking=unmasking, cache=cache, schedule=BLOCKS, stop_at_eos=False)
    result = sampler.generate(prompts_of([5, 11, 8]), gen_length=20)
    idle = sampler.settings.unmasking.idle_steps(20)
    assert (result.row_forwards <= 20 + idle).all()
    assert (result.forward_of_position >= 0).all()
    assert not result.confidence.isnan().any()
    assert not (result.sequences[:, -20:] == tiny().facts.mask_token_id).any()


def test_it_ends_where_every_argmax_is_the_mask_id():
    logits = torch.zeros(64, 6)
    logits[:, -1] = 50.0
    for unmasking in ("confidence_threshold", "factor", "fixed_k"):
        result = Sampler(table(logits), unmasking=unmasking).generate([[1, 2]], gen_length=8)
        assert not (result.sequences == 5).any()
        assert result.forwards <= 8


# 2. What it never commits, and what never changes ------------------------------------------------


def test_ids_that_the_tokenizer_lacks_are_never_committed():
    logits = torch.zeros(64, 8)
    logits[:, 3] = 30.0
    model = table(logits)
    model.facts = replace(model.facts, allowed=model.facts.allowed & (torch.arange(8) != 3))
    result = Sampler(model).generate([[1, 2]], gen_length=8)
    assert not (result.sequences[:, 2:] == 3).any()
    # The banned id leaves the candidates, not the softmax: what is left is improbable.
    assert (result.confidence < 1e-6).all()


def test_tokens_a_policy_may_not_write_are_replaced_by_the_candidate():
    class WritesTheMask(UnmaskingPolicy):
        """Wants to write the mask id."""

        name: ClassVar[str] = "writes_the_mask"

        def select(self, state, observation):
            tokens = torch.full_like(observation.tokens, state.facts.mask_token_id)
            return Decision(observation.eligible, tokens=tokens)

    one = Sampler(hashed(), unmasking=WritesTheMask()).generate([[1, 2]], gen_length=8)
    other = Sampler(hashed(), unmasking={"name": "fixed_k", "k": 8}).generate([[1, 2]], gen_length=8)
    assert one.sequences.equal(other.sequences)


@pytest.mark.parametrize("cache", CACHES, ids=name_of)
def test_a_mask_token_in_a_prompt_is_text(cache):
    model = tiny()
    mask = model.facts.mask_token_id
    prompt = [3, mask, 7, mask, 9]
    result = Sampler(model, cache=cache, schedule=BLOCKS).generate([prompt], gen_length=16)
    assert result.sequences[0, :5].tolist() == prompt
    assert not (result.sequences[0, 5:] == mask).any()
    assert result.row_forwards.item() <= 16


@given(st.data())
def test_infilling_changes_targets_only(data):
    model = hashed()
    facts = model.facts
    length = data.draw(st.integers(2, 24))
    rows = data.draw(st.integers(1, 3))
    canvas = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.sampled_from([1, 2, 3, facts.mask_token_id]), min_size=length, max_size=length),
                min_size=rows,
                max_size=rows,
            )
        )
    )
    canvas[:, data.draw(st.integers(0, length - 1))] = facts.mask_token_id
    width = data.draw(st.integers(1, 10))
    cache = data.draw(st.sampled_from(["none", "prefix", "dual"]))
    sampler = Sampler(model, cache=cache, schedule={"name": "fixed_blocks", "block_length": width})
    result = sampler.infill(canvas)
    targets = canvas == facts.mask_token_id
    assert result.sequences[~targets].equal(canvas[~targets])
    assert not (result.sequences == facts.mask_token_id).any()
    assert (result.forward_of_position[~targets] == -1).all()
    assert (result.forward_of_position[targets] >= 0).all()
    assert (result.row_forwards <= targets.sum(1)).all()


def test_infilling_a_marked_subset_leaves_other_masks_alone():
    model = tiny()
    mask = model.facts.mask_token_id
    canvas = torch.tensor([[5, mask, 6, mask, mask, 7]])
    targets = torch.tensor([[False, True, False, False, True, False]])
    result = Sampler(model).infill(canvas, targets)
    assert result.sequences[0, 3] == mask
    assert not (result.sequences[targets] == mask).any()


# 3. No state outlives a run ----------------------------------------------------------------------


@pytest.mark.parametrize("unmasking", UNMASKING, ids=name_of)
def test_the_same_call_gives_the_same_bits_whatever_ran_between(unmasking):
    sampler = Sampler(
        tiny(), unmasking=unmasking, cache="dual", schedule=BLOCKS, sampling={"temperature": 0.7}
    )
    first = sampler.generate(prompts_of([4, 9]), gen_length=16, seed=3)
    sampler.generate(prompts_of([12], seed=5), gen_length=8, seed=8)
    torch.manual_seed(123)
    again = sampler.generate(prompts_of([4, 9]), gen_length=16, seed=3)
    assert first.sequences.equal(again.sequences)
    assert first.confidence.equal(again.confidence)
    assert first.forward_of_position.equal(again.forward_of_position)
    other = sampler.generate(prompts_of([4, 9]), gen_length=16, seed=4)
    assert not first.sequences.equal(other.sequences)


# 4. Batch mates and padding ----------------------------------------------------------------------


def closest_tie(sampler, prompt, gen_length, seed):
    """The smallest gap between the two best log confidences or logits over a run of one row."""
    gaps = [1.0]
    for step in sampler.steps([prompt], gen_length, seed=seed):
        seen = step.observation
        ordered = seen.log_confidence[seen.eligible].sort().values
        gaps += ordered.diff().tolist()
    return min(gaps)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("cache", CACHES, ids=name_of)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_row_decodes_in_a_ragged_batch_as_it_does_alone(family, cache, temperature):
    lengths = [3, 14, 9, 6]
    prompts = prompts_of(lengths, family)
    for unmasking in UNMASKING:
        settings = {
            "unmasking": unmasking,
            "cache": cache,
            "schedule": BLOCKS,
            "sampling": {"temperature": temperature},
        }
        together = Sampler(tiny(family), batch_size=4, **settings).generate(prompts, gen_length=20, seed=1)
        alone = Sampler(tiny(family), batch_size=1, **settings).generate(prompts, gen_length=20, seed=1)
        for row, prompt in enumerate(prompts):
            if together.sequences[row].equal(alone.sequences[row]):
                assert together.row_forwards[row] == alone.row_forwards[row]
                continue
            # The first difference must be a tie: see `closest_tie`.
            tie = closest_tie(Sampler(tiny(family), batch_size=1, **settings), prompt, 20, 1)
            assert tie < 1e-4, (unmasking, row)


def test_padding_on_the_left_of_a_tensor_of_prompts_changes_nothing():
    prompts = prompts_of([4, 9])
    padded = torch.zeros(2, 11, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(prompts):
        padded[row, 11 - len(prompt) :] = torch.tensor(prompt)
        mask[row, 11 - len(prompt) :] = 1
    sampler = Sampler(tiny(), cache="dual", schedule=BLOCKS)
    from_tensor = sampler.generate(padded, gen_length=12, attention_mask=mask)
    from_lists = sampler.generate(prompts, gen_length=12)
    assert from_tensor.sequences.shape == (2, 11 + 12)
    assert from_tensor.sequences[:, -12:].equal(from_lists.sequences[:, -12:])


def test_results_come_in_the_order_of_the_prompts():
    prompts = prompts_of([3, 12, 5, 9, 7])
    sampler = Sampler(tiny(), batch_size=2, schedule=BLOCKS)
    result = sampler.generate(prompts, gen_length=8)
    for row, prompt in enumerate(prompts):
        assert result.sequences[row, -8 - len(prompt) : -8].tolist() == prompt
        assert result.sequences[row, -8:].equal(sampler.generate([prompt], gen_length=8).sequences[0, -8:])


class RefreshesOnce(CachePolicy):
    """A window about the block; the whole canvas in the first forward only."""

    name: ClassVar[str] = "refreshes_once"

    def plan_forward(self, state, region):
        if state.forward_index == 0:
            return ForwardPlan.full(state)
        return ForwardPlan.window(state, region, left=3, right=2)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_an_idle_row_keeps_its_keys_and_values(family):
    # Without later refreshes, keys written while a row waits for its batch mates would show.
    settings = {
        "unmasking": {"name": "factor", "factor": 1.5},
        "cache": RefreshesOnce(),
        "schedule": BLOCKS,
        "stop_at_eos": False,
    }
    prompts = prompts_of([9, 3, 14, 6], family)
    together = Sampler(tiny(family), batch_size=4, **settings).generate(prompts, gen_length=32)
    alone = Sampler(tiny(family), batch_size=1, **settings).generate(prompts, gen_length=32)
    assert len(set(together.row_forwards.tolist())) > 1  # some did wait
    assert together.sequences.equal(alone.sequences)
    torch.testing.assert_close(together.confidence, alone.confidence, atol=1e-5, rtol=0)


def test_the_clocks_of_an_idle_row_stand_still():
    # Row 0 is done with its block in one forward and waits while row 1 takes eight.
    def predict(tokens, position_ids):
        sure = (tokens[:, :1] == 1).float()[..., None]
        logits = torch.zeros(*tokens.shape, 6)
        logits[..., 2] = 20 * sure[..., 0] + 1
        return logits

    from dllm_sampling.testing import ChosenModel

    sampler = Sampler(
        ChosenModel(predict, 6), unmasking="confidence_threshold", cache="dual", schedule=BLOCKS
    )
    clocks = []
    for step in sampler.steps([[1, 1], [3, 3]], gen_length=16):
        clocks.append((step.region.blocks[0, 0].item(), step.state.block_steps.tolist()))
    assert clocks[:3] == [(0, [0, 0]), (0, [1, 1]), (0, [1, 2])]
    assert clocks[8] == (1, [0, 0])


# 5. End of sequence ------------------------------------------------------------------------------


def eos_at(position, vocabulary=6):
    """Everything certain at once: token 1, and the end of sequence at `position` and after it."""
    logits = torch.zeros(64, vocabulary)
    logits[:, 1] = 20.0
    logits[position:, vocabulary - 2] = 40.0
    return table(logits)


def test_a_row_is_finished_at_its_first_end_of_sequence():
    result = Sampler(eos_at(7), schedule={"name": "fixed_blocks", "block_length": 4}).generate(
        [[1, 1, 1]], gen_length=32
    )
    assert result.forwards == 2  # not the eight of all blocks
    assert result.tokens.tolist() == [5]
    assert result.sequences[0, 3:8].tolist() == [1, 1, 1, 1, 4]
    assert (result.sequences[0, 8:] == 4).all()  # padding
    assert (result.forward_of_position[0, 5:] == -1).all()
    assert result.confidence[0, 5:].isnan().all()
    assert result.tokens_per_forward == 2.5


def test_stop_at_eos_false_decodes_to_the_end_and_counts_the_same_tokens():
    sampler = Sampler(eos_at(7), schedule={"name": "fixed_blocks", "block_length": 4}, stop_at_eos=False)
    result = sampler.generate([[1, 1, 1]], gen_length=32)
    assert result.forwards == 8
    assert (result.forward_of_position >= 0).all()
    assert result.tokens.tolist() == [5]


def test_a_finished_row_leaves_the_batch_and_costs_nothing_more():
    def predict(tokens, position_ids):
        logits = torch.zeros(*tokens.shape, 6)
        logits[..., 1] = 20.0
        short = tokens[:, :1] == 2
        logits[..., 4] = torch.where(short & (position_ids >= 2), 40.0, 0.0)
        return logits

    from dllm_sampling.testing import ChosenModel

    sampler = Sampler(ChosenModel(predict, 6), schedule={"name": "fixed_blocks", "block_length": 4})
    sizes = [step.state.batch for step in sampler.steps([[2, 2], [3, 3]], gen_length=16)]
    assert sizes == [2, 1, 1, 1]
    result = sampler.generate([[2, 2], [3, 3]], gen_length=16)
    assert result.row_forwards.tolist() == [1, 4]
    assert result.positions_computed == 2 * 18 + 3 * 18
    assert result.row_positions_computed.tolist() == [18, 4 * 18]
    assert result.row_refreshes.tolist() == [1, 4]
    both_long = sampler.generate([[3, 3], [3, 3]], gen_length=16)
    assert result.positions_computed < both_long.positions_computed


def test_an_end_of_sequence_with_masks_before_it_does_not_finish_the_row():
    logits = torch.zeros(64, 6)
    logits[:, 1] = 2.0
    logits[5, 4] = 30.0  # certain at once, the rest one by one
    result = Sampler(table(logits)).generate([[1, 1, 1]], gen_length=8)
    assert result.forwards == 3  # the end first; then the two targets before it
    assert result.tokens.tolist() == [3]
    assert result.forward_of_position[0].tolist() == [1, 2, 0] + [-1] * 5


def test_an_end_of_sequence_in_the_prompt_does_not_count():
    result = Sampler(eos_at(60)).generate([[4, 4, 1]], gen_length=8)
    assert (result.forward_of_position >= 0).all()


def test_a_decision_may_end_a_row():
    class EndsAtOnce(UnmaskingPolicy):
        """Commits one position and ends the row."""

        name: ClassVar[str] = "ends_at_once"

        def select(self, state, observation):
            first = torch.zeros_like(observation.masked)
            first[:, 0] = True
            return Decision(first, finish=torch.ones(state.batch, dtype=torch.bool))

    result = Sampler(eos_at(60), unmasking=EndsAtOnce()).generate([[1]], gen_length=8)
    assert result.forwards == 1
    assert result.tokens.tolist() == [1]
    assert (result.sequences[0, 2:] == 4).all()


# 6. Counted ---------------------------------------------------------------------------------------


def test_running_out_of_memory_says_what_to_change():
    def predict(tokens, position_ids):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    from dllm_sampling.testing import ChosenModel

    with pytest.raises(DecodingError, match=r"3 rows of 12 positions: lower batch_size \(now 3\)"):
        Sampler(ChosenModel(predict, 6), batch_size=3).generate([[1] * 4] * 5, gen_length=8)


def test_what_is_counted_for_dual():
    sampler = Sampler(
        tiny(), unmasking={"name": "fixed_k", "k": 2}, cache="dual", schedule=BLOCKS, stop_at_eos=False
    )
    result = sampler.generate(prompts_of([10, 10]), gen_length=16)
    assert (result.forwards, result.refreshes) == (8, 2)
    assert result.positions_computed == 2 * (2 * 26 + 6 * 8)
    assert result.row_forwards.tolist() == [8, 8]
    assert result.row_refreshes.tolist() == [2, 2]
    assert result.row_positions_computed.tolist() == [2 * 26 + 6 * 8] * 2
    assert 0 < result.refresh_seconds < result.seconds
    assert result.tokens_per_forward == result.tokens.sum().item() / 16
    assert result.forced == result.remasks == 0
    assert result.seconds > 0


def test_a_part_of_a_call_decodes_as_in_the_whole_when_it_names_its_places():
    prompts = prompts_of([5, 9, 7, 6])
    sampler = Sampler(tiny(), unmasking="fixed_k", schedule=BLOCKS, sampling={"temperature": 1.0})
    whole = sampler.generate(prompts, gen_length=8, seed=3)
    part = sampler.generate([prompts[3], prompts[1]], gen_length=8, seed=3, places=[3, 1])
    assert part.sequences[:, -8:].tolist() == [whole.sequences[i, -8:].tolist() for i in (3, 1)]
    elsewhere = sampler.generate([prompts[3], prompts[1]], gen_length=8, seed=3)
    assert part.sequences.tolist() != elsewhere.sequences.tolist()
    with pytest.raises(PromptError, match="1 places were given for 2 prompts"):
        sampler.generate(prompts[:2], gen_length=8, places=[0])


def test_what_is_counted_for_dual_on_dream_includes_the_position_before_the_block():
    sampler = Sampler(
        tiny("dream"), unmasking={"name": "fixed_k", "k": 2}, cache="dual", schedule=BLOCKS, stop_at_eos=False
    )
    result = sampler.generate(prompts_of([10]), gen_length=16)
    assert result.positions_computed == 2 * 26 + 6 * 9


def test_remasks_are_counted_and_undone_commits_are_not_in_the_result():
    result = Sampler(hashed(), unmasking=Undoing(patience=6), stop_at_eos=False).generate([[1]], gen_length=6)
    assert result.remasks > 0
    assert (result.forward_of_position >= 0).all()


# Blocks, caches, noise ---------------------------------------------------------------------------


@pytest.mark.parametrize("gen_length", [1, 7, 8, 9, 23])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_block_lengths_that_do_not_divide(gen_length, cache):
    sampler = Sampler(
        tiny(), unmasking={"name": "fixed_k", "k": 1}, cache=cache, schedule=BLOCKS, stop_at_eos=False
    )
    blocks = [step.region.span for step in sampler.steps(prompts_of([6]), gen_length)]
    assert blocks[-1].stop == 6 + gen_length
    assert {b.stop - b.start for b in blocks} <= {8, gen_length % 8}
    assert len(blocks) == gen_length


@pytest.mark.parametrize("inner", ["dual", "prefix"])
@pytest.mark.parametrize("unmasking", UNMASKING, ids=name_of)
def test_interval_1_equals_none(inner, unmasking):
    settings = {"unmasking": unmasking, "schedule": BLOCKS, "stop_at_eos": False}
    prompts = prompts_of([5, 12])
    exact = Sampler(tiny(), cache="none", **settings).generate(prompts, gen_length=20)
    cache = {"name": "interval", "policy": inner, "interval": 1}
    refreshed = Sampler(tiny(), cache=cache, **settings).generate(prompts, gen_length=20)
    assert refreshed.sequences.equal(exact.sequences)
    assert refreshed.forward_of_position.equal(exact.forward_of_position)
    assert refreshed.refreshes == refreshed.forwards


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_interval_refreshes_every_so_many_forwards(interval):
    cache = {"name": "interval", "policy": "dual", "interval": interval}
    sampler = Sampler(
        tiny(), unmasking={"name": "fixed_k", "k": 1}, cache=cache, schedule=BLOCKS, stop_at_eos=False
    )
    length = 6 + 16
    refreshed = [s.plan.is_refresh(length) for s in sampler.steps(prompts_of([6]), 16)]
    assert refreshed == [i % 8 % interval == 0 for i in range(16)]


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_none_equals_a_plain_full_forward_a_step(family):
    model = tiny(family)
    sampler = Sampler(model, unmasking={"name": "fixed_k", "k": 3}, schedule=BLOCKS, stop_at_eos=False)
    prompt = prompts_of([9])[0]
    for step in sampler.steps([prompt], 16):
        with torch.no_grad():
            plain = model.model(step.state.tokens, use_cache=False).logits
        if model.shift:
            plain = torch.cat([plain[:, :1], plain[:, :-1]], 1)
        torch.testing.assert_close(step.observation.logits, plain[:, step.region.span], atol=1e-5, rtol=0)


def test_the_first_plan_must_be_a_refresh():
    class Hasty(CachePolicy):
        """Computes the block alone, from the start."""

        name: ClassVar[str] = "hasty"

        def plan_forward(self, state, region):
            return ForwardPlan.window(state, region, left=0, right=0)

    with pytest.raises(DecodingError, match="first forward of a run must compute every visible position"):
        Sampler(tiny(), cache=Hasty()).generate(prompts_of([5]), gen_length=8)


def test_a_cache_that_never_computes_the_targets_is_found_out():
    class Elsewhere(CachePolicy):
        """Recomputes the prompt."""

        name: ClassVar[str] = "elsewhere"

        def plan_forward(self, state, region):
            return ForwardPlan.full(state) if state.forward_index == 0 else ForwardPlan.between(state, 0, 3)

    sampler = Sampler(tiny(), unmasking={"name": "fixed_k", "k": 1}, cache=Elsewhere())
    with pytest.raises(DecodingError, match="predicted none of the open targets of row"):
        sampler.generate(prompts_of([5]), gen_length=8)


class SlidingWindow(BlockSchedule):
    """A region that starts at each row's first open target: differs from row to row."""

    name: ClassVar[str] = "sliding_window"
    width: int = 6

    def plan_region(self, state):
        first = state.masked.long().argmax(1, keepdim=True)
        positions = first + torch.arange(self.width)
        positions = positions.where(positions < state.length, -1)
        starts = state.forward_index == 0
        return Region(positions, torch.zeros_like(positions), starts_block=starts)


class Scattered(CachePolicy):
    """Recomputes every other position besides the region: rows of different positions, padded."""

    name: ClassVar[str] = "scattered"

    def plan_forward(self, state, region):
        if region.starts_block:
            return ForwardPlan.full(state)
        window = ForwardPlan.window(state, region, left=0, right=0).positions.columns
        return ForwardPlan(torch.cat([window, torch.full_like(window[:, :2], -1)], 1))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["none", "dual", "prefix", Scattered()], ids=str)
def test_regions_that_differ_from_row_to_row(family, cache):
    settings = {"unmasking": {"name": "fixed_k", "k": 2}, "cache": cache, "schedule": SlidingWindow()}
    prompts = prompts_of([3, 9, 5])
    together = Sampler(tiny(family), batch_size=3, stop_at_eos=False, **settings).generate(
        prompts, gen_length=15
    )
    alone = Sampler(tiny(family), batch_size=1, stop_at_eos=False, **settings).generate(
        prompts, gen_length=15
    )
    assert together.sequences.equal(alone.sequences)
    assert (together.forward_of_position >= 0).all()


def test_scattered_positions_compute_the_same_logits_as_a_slice():
    class AsTensor(CachePolicy):
        """Dual, its positions as a tensor."""

        name: ClassVar[str] = "as_tensor"

        def plan_forward(self, state, region):
            if region.starts_block:
                return ForwardPlan.full(state)
            return ForwardPlan(region.positions)

    for family in ("llada", "dream"):
        settings = {"unmasking": {"name": "fixed_k", "k": 2}, "schedule": BLOCKS, "stop_at_eos": False}
        prompts = prompts_of([3, 9, 5])
        sliced = Sampler(tiny(family), cache="dual", **settings).generate(prompts, gen_length=16)
        tensor = Sampler(tiny(family), cache=AsTensor(), **settings).generate(prompts, gen_length=16)
        assert sliced.sequences.equal(tensor.sequences)
        torch.testing.assert_close(sliced.confidence, tensor.confidence, atol=1e-5, rtol=0)


def test_temperature_samples_from_the_filtered_distribution():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -20.0, -20.0]).expand(600, 6).contiguous()
    settings = {"unmasking": {"name": "fixed_k", "k": 500}, "schedule": "whole_canvas", "stop_at_eos": False}
    for sampling, expected in (
        ({"temperature": 0.5}, (logits[0] / 0.5).softmax(-1)),
        ({"temperature": 1.0, "top_k": 2}, logits[0][:2].softmax(-1)),
        ({"temperature": 1.0, "top_p": 0.7}, logits[0][:2].softmax(-1)),
    ):
        result = Sampler(table(logits), sampling=sampling, **settings).generate([[0]], gen_length=500)
        share = torch.bincount(result.sequences[0, 1:], minlength=6) / 500
        # Six standard deviations of 500 draws are at most 0.135.
        assert (share[: len(expected)] - expected).abs().max() < 0.135
        assert share[len(expected) :].sum() == 0
        # Confidence stays the model's own probability.
        own = logits[0].softmax(-1)[result.sequences[0, 1:]]
        torch.testing.assert_close(result.confidence[0], own)


def test_filtered_confidence_is_the_probability_after_filtering():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -20.0, -20.0]).expand(64, 6).contiguous()
    sampling = {"temperature": 0.5, "top_k": 2, "confidence": "filtered"}
    result = Sampler(table(logits), sampling=sampling, stop_at_eos=False).generate([[0]], gen_length=32)
    own = (logits[0][:2] / 0.5).softmax(-1)[result.sequences[0, 1:]]
    torch.testing.assert_close(result.confidence[0], own)


# Owning the loop ----------------------------------------------------------------------------------


def test_steps_may_replace_the_decision():
    sampler = Sampler(hashed(), unmasking={"name": "fixed_k", "k": 1}, stop_at_eos=False)
    run = sampler.steps([[1, 2, 3]], gen_length=8)
    for step in run:
        step.decision = Decision(step.observation.eligible)
    assert run.result.forwards == 1
    assert run.result.sequences.equal(
        Sampler(hashed(), unmasking={"name": "fixed_k", "k": 8}, stop_at_eos=False)
        .generate([[1, 2, 3]], gen_length=8)
        .sequences
    )


def test_a_run_has_no_result_before_its_end():
    run = Sampler(hashed()).steps([[1]], gen_length=8)
    next(run)
    with pytest.raises(RuntimeError, match="steps left"):
        _ = run.result
    assert run.finish().sequences.shape == (1, 9)


def test_lifecycle_hooks_are_called_in_order_and_with_what_they_ask_for():
    calls = []

    class Watching(Observer):
        """Notes what it is told."""

        name: ClassVar[str] = "watching"

        def begin(self, facts):
            calls.append(("begin", facts.family))

        def block_started(self, state, region):
            calls.append(("block_started", region.blocks[0, 0].item()))

        def committed(self, state, decision):
            calls.append(("committed", int(decision.commit.sum()), state.forward_index))

        def block_finished(self, region):
            calls.append(("block_finished", region.blocks[0, 0].item()))

        def rows_selected(self, rows):
            calls.append(("rows_selected", rows.tolist()))

        def end(self, result):
            calls.append(("end", result.forwards))

    sampler = Sampler(
        eos_at(40),
        unmasking={"name": "fixed_k", "k": 4},
        schedule={"name": "fixed_blocks", "block_length": 4},
        observers=[Watching()],
    )
    sampler.generate([[1, 1]], gen_length=8)
    assert calls == [
        ("begin", "chosen"),
        ("block_started", 0),
        ("committed", 4, 1),
        ("block_finished", 0),
        ("block_started", 1),
        ("committed", 4, 2),
        ("block_finished", 1),
        ("end", 2),
    ]


def test_memory_follows_the_rows_that_stay():
    class Remembering(Observer):
        """Keeps each row's seed."""

        name: ClassVar[str] = "remembering"

        def begin(self, state):
            state.memory(self)["seeds"] = state.seeds.clone()

        def committed(self, state):
            assert state.memory(self)["seeds"].shape[0] >= state.batch

        def rows_selected(self, state):
            assert state.memory(self)["seeds"].equal(state.seeds)

    def predict(tokens, position_ids):
        logits = torch.zeros(*tokens.shape, 6)
        logits[..., 1] = 20.0
        logits[..., 4] = torch.where((tokens[:, :1] == 2) & (position_ids >= 2), 40.0, 0.0)
        return logits

    from dllm_sampling.testing import ChosenModel

    sampler = Sampler(
        ChosenModel(predict, 6),
        schedule={"name": "fixed_blocks", "block_length": 4},
        observers=[Remembering(), Remembering()],
    )
    sampler.generate([[2, 2], [3, 3], [2, 2]], gen_length=12)


def test_memory_of_a_policy_that_is_not_in_the_run():
    sampler = Sampler(hashed())
    step = next(sampler.steps([[1]], gen_length=4))
    with pytest.raises(DecodingError, match="not part of this run"):
        step.state.memory(ConfidenceThreshold())


def test_equal_policies_in_two_slots_do_not_share_memory():
    dual = {
        "name": "interval",
        "policy": {"name": "interval", "policy": "dual", "interval": 4},
        "interval": 4,
    }
    sampler = Sampler(tiny(), unmasking=FixedK(k=2), cache=dual, schedule=BLOCKS)
    state = next(sampler.steps(prompts_of([4]), gen_length=8)).state
    outer, inner = sampler.settings.cache, sampler.settings.cache.policy
    assert (type(outer), outer.policy.name) == (type(inner), "interval")
    remembered = state._memories.rows
    assert {"cache", "cache.policy", "cache.policy.policy"} <= set(remembered)
    assert remembered["cache"] is not remembered["cache.policy"]


def test_dream_schedule_is_idle_as_published():
    policy = DreamSchedule(steps=16, alg="maskgit_plus")
    result = Sampler(hashed(), unmasking=policy, schedule="whole_canvas", stop_at_eos=False).generate(
        [[1]], gen_length=16
    )
    assert result.forwards == 16
    assert not (result.forward_of_position == 0).any()  # as many steps as targets: the first commits none
    assert result.forced == 0
