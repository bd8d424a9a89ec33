"""What slow, obvious versions share: runs to watch, and a step as plain Python numbers, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from hypothesis import reject
from hypothesis import strategies as st

from dllm_sampling import BlockSchedule, CachePolicy, ForwardPlan, Region, Sampler, UnmaskingPolicy, Wrapper
from dllm_sampling.engine import prompts as prompting
from dllm_sampling.engine.run import Run
from dllm_sampling.state import noise
from dllm_sampling.testing import ChosenModel

BAND = 1e-5  # float32 may decide either way where float64 values are this near


def model(seed=0, vocabulary=9, scale=4.0, period=10**6, ends=0.0):
    """Predictions that depend on the canvas and on the position; the same every `period` positions.

    So equal scores occur. ends: how much likelier an end of sequence is.
    """

    def predict(tokens, position_ids):
        context = (tokens * (position_ids + 1)).sum(1, keepdim=True) % 9973
        seeds = ((context + seed) * 31 + position_ids % period)[..., None] * 7919
        seeds = seeds + torch.arange(vocabulary) * 104729
        values = torch.sin(seeds.double() * 12.9898).float() * scale
        values[..., vocabulary - 2] += ends
        return values

    return ChosenModel(predict, vocabulary)


def prompts(lengths):
    return [[(i * 7 + j) % 5 for j in range(n)] for i, n in enumerate(lengths)]


def scrambled(*numbers):
    """A number in [0, 1) that looks random and depends on these integers alone."""
    value = 0
    for number in numbers:
        value = (value * 1000003 + int(number) * 7919 + 12345) % 2147483647
    return (value * 48271 % 2147483647) / 2147483647


class Holes(Wrapper):
    """Holds back a share of the region, other positions in every step, never all that is open."""

    name: ClassVar[str] = "holes"
    share: float = 0.3

    def restrict(self, state, observation):
        allowed = torch.ones_like(observation.masked)
        for i, row in enumerate(observation.positions.columns.tolist()):
            for j, p in enumerate(row):
                allowed[i, j] = scrambled(p, state.row_steps[i], 3) >= self.share
            if not (allowed[i] & observation.eligible[i]).any():
                allowed[i] = True
        return allowed


class Patchy(CachePolicy):
    """Recomputes a changing part of the canvas, and the leftmost open target of the region always."""

    name: ClassVar[str] = "patchy"
    share: float = 0.6

    def plan_forward(self, state, region):
        if state.forward_index == 0:
            return ForwardPlan.full(state)
        mask = torch.zeros_like(state.valid)
        for i in range(state.batch):
            for p in range(state.length):
                mask[i, p] = scrambled(p, state.forward_index, i, 5) < self.share
            inside = [p for p in region.positions.columns[i].tolist() if p >= 0 and state.masked[i, p]]
            if inside:
                mask[i, inside[0]] = True
        return ForwardPlan.of(mask, state.length)


class Some(UnmaskingPolicy):
    """Commits a changing part of what it may: each row at a pace of its own."""

    name: ClassVar[str] = "some"
    seed: int = 0
    share: float = 0.4

    def select(self, state, observation):
        drawn = [
            [scrambled(self.seed, state.rows[i], p, state.forward_index) < self.share for p in row]
            for i, row in enumerate(observation.positions.columns.tolist())
        ]
        return torch.tensor(drawn)


class Drifting(BlockSchedule):
    """Regions of each row: from before its leftmost open target, blocks of three, with gaps and padding."""

    name: ClassVar[str] = "drifting"
    width: int = 5

    def plan_region(self, state):
        rows = []
        for i in range(state.batch):
            targets = [p for p, target in enumerate(state.targets[i].tolist()) if target]
            first = min(state.next_open[i], targets[-1])
            columns = range(max(first - 2, targets[0]), min(first + self.width, targets[-1] + 1))
            rows.append([p for p in columns if p == first or scrambled(p, state.forward_index, 17) < 0.8])
        width = max(len(row) for row in rows)
        positions = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
        starts = state.forward_index == 0
        return Region(positions, (positions - state.first_target).div(3, rounding_mode="floor"), starts)


@dataclass
class Row:
    """One row of one step, as lists over the region."""

    row: int  # in the batch as it began
    state: object
    positions: list
    blocks: list
    masked: list
    committed: list
    eligible: list
    fresh: list
    p: list  # probabilities, float64
    logits: list
    banned: list
    steps: int  # the row's clock
    block_steps: int
    block_forwards: int
    known: dict = field(default_factory=dict)

    def token(self, i):
        """The candidate."""
        allowed = [v for v in range(len(self.p[i])) if v not in self.banned]
        return max(allowed, key=lambda v: (self.logits[i][v], -v))

    def c(self, i):
        """Its probability."""
        return self.p[i][self.token(i)]

    def log_c(self, i):
        """Its logarithm, without saturation."""
        if i not in self.known:
            self.known[i] = self._log_c(i)
        return self.known[i]

    def _log_c(self, i):
        best = self.token(i)
        others = (math.exp(x - self.logits[i][best]) for v, x in enumerate(self.logits[i]) if v != best)
        return -math.log1p(sum(others))

    def entropy(self, i):
        return -sum(x * math.log(x) for x in self.p[i] if x > 0)

    def margin(self, i):
        first, second = sorted(self.p[i], reverse=True)[:2]
        return first - second

    def gap(self, i):
        """Between the two largest logits."""
        first, second = sorted(self.logits[i], reverse=True)[:2]
        return first - second

    def uniform(self, i, purpose):
        """The run's noise: a function of the row's seed, its clock, the place in its text, the purpose."""
        at = self.state.rows.index(self.row)
        place = self.state.position_ids[at, self.positions[i]]
        return float(
            noise.uniform(noise.keys(self.state.seeds[at], self.state.row_steps[at], place, purpose))
        )

    @property
    def inside(self):
        return [i for i, p in enumerate(self.positions) if p >= 0]

    @property
    def may(self):
        """Where it may commit."""
        return [i for i in self.inside if self.eligible[i]]

    @property
    def canvas(self):
        """Columns of the canvas that are targets, and whether each is open."""
        i = self.state.rows.index(self.row)
        masked, targets = self.state.masked[i].tolist(), self.state.targets[i].tolist()
        return {p: masked[p] for p, target in enumerate(targets) if target}


def rows_of(step):
    seen, state = step.observation, step.state
    p = seen.logits.double().softmax(-1).tolist()
    fields = ("blocks", "masked", "committed", "eligible", "fresh")
    lists = {name: getattr(seen, name).tolist() for name in fields}
    lists["positions"] = seen.positions.columns.tolist()
    logits = seen.logits.double().tolist()
    banned = state.facts.banned.tolist()
    steps, block_steps = state.row_steps.tolist(), state.block_steps.tolist()
    for i, row in enumerate(state.rows):
        yield Row(
            row=row,
            state=state,
            p=p[i],
            logits=logits[i],
            banned=banned,
            steps=steps[i],
            block_steps=block_steps[i],
            block_forwards=state.block_forwards,
            **{name: values[i] for name, values in lists.items()},
        )


def sure(value, bound):
    """`value` as it is; the example is dropped where it is too near `bound` to be told from it."""
    if abs(value - bound) <= BAND * max(1.0, abs(bound)):
        reject()
    return value


def ranked(indices, score):
    """From the largest score down, equal ones from the left; dropped where two nearly agree."""
    scores = {i: score(i) for i in indices}
    ordered = sorted(indices, key=lambda i: (-scores[i], i))
    for a, b in pairwise(ordered):
        if scores[a] != scores[b] and abs(scores[a] - scores[b]) < 1e-6 * max(1e-3, abs(scores[a])):
            reject()
    return ordered


SCHEDULES = st.one_of(
    st.builds(lambda n: {"name": "fixed_blocks", "block_length": n}, st.integers(1, 8)),
    st.just({"name": "whole_canvas"}),
    st.builds(lambda n: {"name": "sliding", "block_length": n}, st.integers(1, 6)),
    st.builds(
        lambda n, add: {"name": "multi_block", "block_length": n, "add": add},
        st.integers(2, 5),
        st.sampled_from([0.0, 0.3, 1.0]),
    ),
    st.just({"name": "adablock", "block_length": 3, "share": 0.6, "threshold": 0.1, "delimiters": [1, 4]}),
)
GAPS = st.one_of(SCHEDULES, st.builds(Drifting, width=st.integers(1, 6)))  # regions with gaps as well


@st.composite
def texts(draw, mask, longest, fill):
    """Prompts with so many targets behind each, or canvases whose targets lie anywhere."""
    if fill and draw(st.integers(0, 2)) == 0:
        rows = st.lists(st.sampled_from([mask, mask, 0, 3]), min_size=1, max_size=longest)
        canvases = [
            [*row, mask] if mask not in row else row for row in draw(st.lists(rows, min_size=1, max_size=3))
        ]
        return {"canvases": canvases, "sizes": [len(row) for row in canvases]}
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    return {"lengths": lengths, "gen_length": draw(st.integers(1, longest)), "sizes": lengths}


@st.composite
def settings_of_a_run(draw, schedules=GAPS, caches=("none", "patchy"), longest=12, fill=True):
    """Everything of a run but the rule: model, texts, schedule, cache, restriction."""
    ends = draw(st.sampled_from([0.0, 0.0, 4.0]))
    cache = draw(st.sampled_from(caches))
    if cache == "patchy":
        cache = Patchy(share=draw(st.sampled_from([0.3, 0.7])))
    vocabulary = draw(st.integers(7, 9))
    return {
        "model": model(
            draw(st.integers(0, 10**6)),
            vocabulary,
            draw(st.sampled_from([0.5, 2.0, 4.0, 9.0])),
            draw(st.sampled_from([10**6, 10**6, 3])),
            ends,
        ),
        **draw(texts(vocabulary - 1, longest, fill)),
        "settings": {
            "schedule": draw(schedules),
            "cache": cache,
            "wrappers": [Holes(share=0.4)] if draw(st.booleans()) else [],
            "stop_at_eos": ends > 0,
        },
    }


def opened(run, **more):
    """The run itself: an iterator of steps, then `result`."""
    sampler = Sampler(run["model"], **(run["settings"] | more))
    if "canvases" in run:
        canvases = prompting.canvases_to_infill(run["canvases"], None, run["model"].facts)
        return Run(sampler.settings, sampler.model, canvases, None, 0, sampler.settings.stop_at_eos)
    return sampler.steps(prompts(run["lengths"]), run["gen_length"])


def in_call_order(run, by_row):
    """What is known of the rows of a batch, longest first, in the order of the call."""
    sizes = run["sizes"]
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    return [by_row[order.index(i)] for i in range(len(sizes))]


def steps(run, unmasking, **more):
    """The steps of a run, each seen before it is committed."""
    yield from opened(run, unmasking=unmasking, **more)


def walk(run, policy, expected, **more):
    """Compare every decision of a run with `expected(row, memory)`: what is committed, what is remasked.

    Both are sets of places in the region; memory is a dict of the row's own, empty at the start.
    """
    memories = {}
    for step in steps(run, policy, **more):
        decision, seen = step.decision, step.observation
        commit = (decision.commit & seen.eligible).tolist()
        remask = None if decision.remask is None else (decision.remask & seen.committed).tolist()
        for i, row in enumerate(rows_of(step)):
            wanted = expected(row, memories.setdefault(row.row, {}))
            wanted_commit, wanted_remask = wanted if isinstance(wanted, tuple) else (wanted, set())
            got = {j for j, x in enumerate(commit[i]) if x}
            assert got == set(wanted_commit), (step.state.forward_index, row.row)
            again = set() if remask is None else {j for j, x in enumerate(remask[i]) if x}
            assert again == set(wanted_remask), (step.state.forward_index, row.row)
