"""Transforms and wrappers against slow versions, and what becomes of a row at the end of a run."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from dllm_sampling.strategies import (
    ClassifierFreeGuidance,
    Credit,
    EosGuard,
    FastDllmDream,
    FixedBlocks,
    SuppressTokens,
    WholeCanvas,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sampling import (
    ConfigurationError,
    LogitsTransform,
    Observer,
    PluginError,
    Sampler,
    UnmaskingPolicy,
    load_model,
)
from dllm_sampling.testing import ChosenModel
from tests.slow import Some, in_call_order, model, opened, prompts, rows_of, settings_of_a_run, steps

few = settings(max_examples=40)


class Before(LogitsTransform):
    """Keeps the logits that the next transform is given."""

    name: ClassVar[str] = "before"
    kept: ClassVar[list] = []

    def transform(self, state, observation):
        self.kept.append(observation.logits.clone())
        return observation.logits


@given(settings_of_a_run(), st.floats(0.0, 2.0), st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.floats(0.0, 2.0))
@few
def test_credit(run, alpha, beta, gamma):
    Before.kept.clear()
    transforms = [Before(), Credit(alpha=alpha, beta=beta, gamma=gamma)]
    credits = {}
    for step in steps(run, Some(share=0.3), transforms=transforms):
        raw = Before.kept.pop()
        p = raw.double().softmax(-1)
        for i, row in enumerate(rows_of(step)):
            before = {} if row.block_forwards == 0 else credits.get(row.row, {})
            now = {}
            for j in row.inside:
                at = row.positions[j]
                credit = [beta * x for x in before.get(at, [0.0] * raw.shape[-1])]
                if row.masked[j]:
                    best = max(range(len(credit)), key=lambda v: float(raw[i, j, v]))
                    credit[best] += float(p[i, j, best]) ** gamma
                now[at] = credit
                wanted = [float(raw[i, j, v]) + alpha * math.log(1 + x) for v, x in enumerate(credit)]
                assert step.observation.logits[i, j].tolist() == pytest.approx(wanted, abs=1e-4)
            credits[row.row] = now


@given(settings_of_a_run(), st.sets(st.integers(0, 6), min_size=1, max_size=3), st.booleans())
@few
def test_suppress_tokens(run, ids, end):
    Before.kept.clear()
    tokens = (*sorted(ids), "eos") if end else tuple(sorted(ids))
    for step in steps(run, Some(share=0.3), transforms=[Before(), SuppressTokens(tokens=tokens)]):
        raw, facts = Before.kept.pop(), step.state.facts
        gone = ids | (set(facts.eos_token_ids) if end else set())
        for v in range(raw.shape[-1]):
            found = step.observation.logits[..., v]
            assert (found == -math.inf).all() if v in gone else torch.equal(found, raw[..., v])


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (-1, r"tokens: -1 is outside \[0, 9\)"),
        (9, r"tokens: 9 is outside \[0, 9\)"),
        ("x", "needs a tokenizer"),
    ],
)
def test_tokens_that_are_not_there_are_refused(token, message):
    with pytest.raises(ConfigurationError, match=message):
        Sampler(model(), transforms=[SuppressTokens(tokens=(token,))]).generate([[1]], 2)


def test_a_token_may_be_given_as_its_text_or_as_text_of_one_token():
    backbone = load_model()
    known = backbone.tokenizer.get_vocab()
    text = next(t for t in known if t.isalnum() and len(t) == 1)
    ids = []
    for token in (text, known[text], backbone.facts.vocab_size - 1, 0):
        step = next(Sampler(backbone, transforms=[SuppressTokens(tokens=(token,))]).steps([[1, 2]], 4))
        ids.append((step.observation.logits[0, 0] == -math.inf).nonzero()[:, 0].tolist())
    assert ids == [[known[text]], [known[text]], [backbone.facts.vocab_size - 1], [0]]
    # A text that is written otherwise in the vocabulary.
    assert " pens" not in known
    (pens,) = backbone.tokenizer(" pens", add_special_tokens=False)["input_ids"]
    step = next(Sampler(backbone, transforms=[SuppressTokens(tokens=(" pens",))]).steps([[1, 2]], 4))
    assert (step.observation.logits[0, 0] == -math.inf).nonzero()[:, 0].tolist() == [pens]
    with pytest.raises(ConfigurationError, match="'Mia pens' is 2 tokens, not one"):
        Sampler(backbone, transforms=[SuppressTokens(tokens=("Mia pens",))]).generate([[1, 2]], 4)


@given(settings_of_a_run(), st.floats(0.1, 4.0))
@few
def test_guidance(run, scale):
    Before.kept.clear()
    predict = run["model"].predict
    transforms = [Before(), ClassifierFreeGuidance(scale=scale)]
    run["settings"]["cache"] = "none"  # so that a forward predicts from the whole canvas
    for step in steps(run, Some(share=0.3), transforms=transforms):
        raw, state = Before.kept.pop(), step.state
        tokens = state.tokens.clone()
        for i in range(state.batch):
            for p in range(state.length):
                if state.valid[i, p] and not state.targets[i, p]:
                    tokens[i, p] = state.facts.mask_token_id
        without = predict(tokens, state.position_ids)
        for i, row in enumerate(step.region.positions.columns.tolist()):
            for j, p in enumerate(row):
                if p >= 0:
                    u = without[i, p]
                    wanted = u + (scale + 1) * (raw[i, j] - u)
                    assert torch.allclose(step.observation.logits[i, j], wanted, atol=1e-4)


def test_guidance_leaves_what_is_impossible_as_it_is():
    def predict(tokens, position_ids):
        values = torch.zeros(*tokens.shape, 6)
        values[..., 2] = -torch.inf
        values[..., 1] = torch.where(tokens[:, :1] == 3, 4.0, 0.0)
        return values

    sampler = Sampler(ChosenModel(predict, 6), transforms=[ClassifierFreeGuidance(scale=0.5)])
    logits = next(sampler.steps([[3]], 2)).observation.logits[0, 0]
    assert logits.tolist() == [0.0, 6.0, -math.inf, 0.0, 0.0, 0.0]


@given(settings_of_a_run(longest=14))
@few
def test_eos_guard(run):
    cuts = getattr(run["settings"]["schedule"], "get", dict().get)("name") == "adablock"  # holds back too
    for step in steps(run, Some(share=0.4), wrappers=[EosGuard()], stop_at_eos=False):
        ends = step.state.facts.eos_token_ids
        for row in rows_of(step):
            for j in row.inside:
                left = any(open_ for p, open_ in row.canvas.items() if p < row.positions[j])
                held = row.token(j) in ends and left
                wanted = row.masked[j] and row.fresh[j] and not held
                assert row.eligible[j] == wanted or (cuts and not row.eligible[j])


@given(settings_of_a_run(caches=("none",), longest=14), st.integers(1, 6), st.booleans())
@few
def test_fast_dllm_dream(run, length, whole):
    """On a block's refresh its first open position; then the region without its start, once that is written."""
    schedule = WholeCanvas() if whole else FixedBlocks(block_length=length)
    holes = run["settings"]["wrappers"]
    fixed = {"wrappers": [*holes, FastDllmDream()], "schedule": schedule, "stop_at_eos": False}
    for step in steps(run, Some(share=0.4), **fixed):
        state, region = step.state, step.region
        targets = [[p for p, x in enumerate(row) if x] for row in state.targets.tolist()]
        first = state.first_target
        for i, row in enumerate(rows_of(step)):
            block = next(b for b, p in zip(row.blocks, row.positions, strict=True) if p >= 0)
            start, end = (
                (first, targets[i][-1] + 1) if whole else (first + block * length, targets[i][-1] + 1)
            )
            end = end if whole else min(start + length, end)
            columns = list(range(start, end))
            if region.starts_block:
                chosen = [j for j in row.inside if row.masked[j]][:1]
                assert step.decision.commit[i].nonzero()[:, 0].tolist() == chosen
            elif not state.masked[i, start]:
                columns.remove(start)
            assert [row.positions[j] for j in row.inside] == columns
        if region.span is not None:
            span = list(range(region.span.start, region.span.stop))
            assert region.positions.columns.tolist() == [span] * state.batch


def test_fast_dllm_dream_leaves_the_cheap_path_open():
    """Where every row has written its first position, the region is one span behind it."""
    sampler = Sampler(
        model(3),
        unmasking={"name": "fixed_k", "k": 2},
        schedule=FixedBlocks(block_length=5),
        wrappers=[FastDllmDream()],
        stop_at_eos=False,
    )
    spans = [step.region.span for step in sampler.steps(prompts([2, 4]), 10)]
    assert spans == [slice(4, 9), slice(5, 9), slice(5, 9), slice(9, 14), slice(10, 14), slice(10, 14)]


# The end of a run -----------------------------------------------------------------------------------


class Last(Observer):
    """The canvas of every row as it was when the row was last worked on."""

    name: ClassVar[str] = "last"
    rows: ClassVar[dict] = {}

    def committed(self, state, observation, decision):
        for i, row in enumerate(state.rows):
            at = [
                state.tokens[i].tolist(),
                state.committed_at[i].tolist(),
                state.committed_confidence[i].tolist(),
            ]
            self.rows[row] = (*at, state.targets[i].tolist(), state.valid[i].tolist())


def finished(row, ends, pad, stop_at_eos):
    """What is returned of a row: columns of its own, tokens counted to the first end of sequence."""
    tokens, at, confidence, targets, valid = row
    found, count, over = [], 0, False
    for p in range(len(tokens)):
        if not valid[p]:
            continue
        written = targets[p] and at[p] >= 0
        blank = targets[p] and (not written or (over and stop_at_eos))
        count += written and not over
        shown = (pad, -1, math.nan) if blank else (tokens[p], at[p], confidence[p])
        over = over or (written and tokens[p] in ends)
        found.append((p, *shown))
    return found, count


@given(settings_of_a_run(longest=14), st.booleans())
@few
def test_what_is_returned(run, stop):
    Last.rows.clear()
    done = opened(run, unmasking=Some(share=0.5), observers=[Last()], stop_at_eos=stop)
    result, facts = done.finish(), run["model"].facts
    rows = in_call_order(run, Last.rows)
    gen = run.get("gen_length", max(run["sizes"]))
    width = gen if "canvases" in run else gen + max(run["sizes"])
    assert result.sequences.shape == (len(rows), width)
    assert result.forward_of_position.shape == result.confidence.shape == (len(rows), gen)
    for i, row in enumerate(rows):
        cells, count = finished(row, facts.eos_token_ids, facts.pad_token_id, stop)
        missing = width - len(cells)
        # Prompts are padded on the left, canvases to fill on the right.
        left, right = (0, missing) if "canvases" in run else (missing, 0)

        def padded(values, fill, left=left, right=right):
            return [fill] * left + values + [fill] * right

        assert result.sequences[i].tolist() == padded([c[1] for c in cells], facts.pad_token_id)
        assert result.forward_of_position[i].tolist() == padded([c[2] for c in cells], -1)[-gen:]
        wanted = padded([c[3] for c in cells], math.nan)[-gen:]
        assert result.confidence[i].tolist() == pytest.approx(wanted, nan_ok=True)
        assert int(result.tokens[i]) == count
    assert result.tokens_per_forward == int(result.tokens.sum()) / int(result.row_forwards.sum())


def test_the_sums_of_a_call_are_over_its_batches():
    sampler = Sampler(
        model(2), unmasking={"name": "fixed_k", "k": 2}, schedule={"name": "fixed_blocks", "block_length": 4},
        cache="dual", batch_size=2, stop_at_eos=False,
    )  # fmt: skip
    lengths = [3, 5, 1]
    whole = sampler.generate(prompts(lengths), 8)
    parts = [sampler.generate([prompts(lengths)[i] for i in rows], 8) for rows in ([0, 1], [2])]
    for name in ("forwards", "refreshes", "positions_computed", "forced", "remasks"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts), name
    assert whole.positions_computed == int(whole.row_positions_computed.sum())
    assert (whole.forwards, whole.refreshes) == (8, 4)
    assert 0 < whole.refresh_seconds < whole.seconds
    assert whole.compile_seconds == 0.0
    assert whole.execution == "eager"
    assert whole.texts == ["", "", ""]


def test_texts_are_what_was_written_up_to_the_end():
    backbone = load_model()
    questions = [
        "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?",
        "Mia has 12 pens. Mia buys 5. Mia loses 3. Mia finds 2. How many pens?",
    ]
    sampler = Sampler(backbone, cache="dual")
    result = sampler.generate(questions, 32)
    for i, text in enumerate(result.texts):
        ids = result.sequences[i, -32:].tolist()
        kept = ids[: int(result.tokens[i])]
        assert text == backbone.tokenizer.decode(kept, skip_special_tokens=True)
        assert text
    # Of a canvas to fill, what was given is text as well.
    canvas = result.sequences[0].clone()
    canvas[-30:-28] = backbone.facts.mask_token_id
    filled = sampler.infill(canvas[None])
    assert filled.texts[0] == backbone.tokenizer.decode(
        filled.sequences[0].tolist(), skip_special_tokens=True
    )


def test_canvases_to_fill_come_back_as_they_were_given():
    """Ragged ones side by side: each in its own columns from the left, padding behind."""
    sampler = Sampler(model(vocabulary=9), unmasking="fixed_k")
    canvases = [[1, 8, 2], [8, 8, 3, 1, 4], [0, 1, 2, 8]]
    result = sampler.infill(canvases)
    pad = 7
    for i, canvas in enumerate(canvases):
        row, at = result.sequences[i].tolist(), result.forward_of_position[i].tolist()
        assert [a for a, b in zip(row, canvas, strict=False) if b != 8] == [b for b in canvas if b != 8]
        assert row[len(canvas) :] == [pad] * (5 - len(canvas))
        assert [p for p, x in enumerate(at) if x >= 0] == [p for p, x in enumerate(canvas) if x == 8]
        assert int(result.tokens[i]) == canvas.count(8)
        assert int(result.row_forwards[i]) == canvas.count(8)


# Hooks ----------------------------------------------------------------------------------------------


def test_a_canvas_of_another_shape_is_refused():
    class Narrow(LogitsTransform):
        """Names a canvas that is too short."""

        name: ClassVar[str] = "narrow"

        def canvases(self, state, plan):
            return {"short": state.tokens[:, 1:]}

        def transform(self, state, observation):
            return observation.logits

    with pytest.raises(PluginError, match=r"canvas 'short'.*\[1, 2\].*\[1, 3\]"):
        Sampler(model(), transforms=[Narrow()]).generate([[1]], 2)


def test_a_held_policy_answers_lifecycle_hooks_and_no_others():
    """Its holder decides whether it is asked for anything else."""
    told = []

    class Held(UnmaskingPolicy):
        """Notes what it is told, and answers hooks that are not its holder's."""

        name: ClassVar[str] = "held"

        def begin(self, state):
            told.append("begin")
            state.memory(self)["own"] = torch.zeros(state.batch)

        def block_started(self):
            told.append("block_started")

        def committed(self, state):
            told.append("committed")
            assert state.memory(self)["own"].shape == (state.batch,)

        def block_finished(self):
            told.append("block_finished")

        def end(self):
            told.append("end")

        def select(self, state, observation):
            told.append("select")
            return observation.eligible

    held = {"name": "with_budget", "policy": Held(), "k": 2}
    Sampler(model(), unmasking=held, schedule="whole_canvas", stop_at_eos=False).generate([[1]], 4)
    step = ["select", "committed"]
    assert told == ["begin", "block_started", *step, *step, "block_finished", "end"]
