"""Every rule against decisions recorded by running its published code: see tests/data/published/README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from dllm_sampling.strategies import (
    EarlyCommit,
    EntropyBound,
    EntropyThreshold,
    FixedK,
    Frechet,
    Hierarchy,
    LocalLeap,
    PCSampler,
    SchED,
)

from dllm_sampling import Decision, Sampler, UnmaskingPolicy, or_the_best
from dllm_sampling.engine import prompts
from dllm_sampling.engine.run import Run
from dllm_sampling.testing import ChosenModel, observe

FOLDER = Path(__file__).parent / "data" / "published"


@cache
def recorded(method):
    return json.loads((FOLDER / f"{method}.json").read_text())


def with_mask(logits):
    """Recorded logits with one more token behind them, the mask, which is never predicted."""
    values = torch.tensor(logits, dtype=torch.float32)
    return torch.nn.functional.pad(values, (0, 1), value=-torch.inf)


# Rules that keep nothing: one call a case -----------------------------------------------------------


def chosen(policy, case):
    """The positions that the policy commits through the engine's guard."""
    masked = torch.tensor([case["masked"]])
    state, observation = observe(with_mask(case["logits"])[None], masked=masked, policy=policy)
    picked = policy.select(state, observation) & observation.eligible
    # The guard's choice: the most confident one.
    picked = or_the_best(picked, observation.log_confidence, observation.eligible)
    return picked[0].nonzero()[:, 0].tolist()


STATELESS = {
    "frechet": lambda p: Frechet(delta=p["margin"]),
    "entropy_bound": lambda p: EntropyBound(gamma=p["gamma"]),
    "entropy_threshold": lambda p: EntropyThreshold(threshold=p["threshold"]),
    "local_leap": lambda p: LocalLeap(
        threshold=p["threshold"], relaxed_threshold=p["relaxed_threshold"], radius=p["radius"]
    ),
    "hierarchy": lambda p: Hierarchy(
        threshold=1.0 if p["threshold"] is None else p["threshold"], low_threshold=p["low_threshold"] or 0.0
    ),
}


@pytest.mark.parametrize("method", STATELESS)
def test_a_stateless_rule_decides_as_recorded(method):
    cases = recorded(method)["cases"]
    assert len(cases) >= 50
    for number, case in enumerate(cases):
        if any(case["masked"]):
            assert chosen(STATELESS[method](case["parameters"]), case) == sorted(case["commit"]), number


def test_early_commit_decides_as_recorded():
    cases = recorded("early_commit")["cases"]
    exits = 0
    for case in cases:
        p = case["parameters"]
        start, stop = p["answer"][0], min(p["answer"][1], len(case["masked"]))
        if stop <= start:
            continue  # no answer: never an exit
        policy = EarlyCommit(
            policy="fixed_k",
            answer_start=start,
            answer_length=stop - start,
            gaps=p["thresholds"],
            steps=p["max_steps"],
        )
        masked = torch.tensor([case["masked"]])
        state, observation = observe(with_mask(case["logits"])[None], masked=masked, policy=policy)
        state.tensors.steps += case["step"] - 1
        commit = policy.select(state, observation)
        everything = bool((commit >= observation.masked).all())
        assert everything == (case["exit"] or sum(case["masked"]) == 1)
        exits += case["exit"]
    assert len(cases) >= 50
    assert exits >= 10


def test_pc_sampler_scores_as_recorded(tmp_path):
    data = recorded("pc_sampler")
    cases = data["cases"]
    tables = []
    for number, table in enumerate(data["tables"]):
        counts = {token: n for token, n in enumerate(table["counts"]) if n is not None}
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"num_token": table["num_token"], "p_baseline_dict": counts}))
        tables.append(path)
    for case in cases:
        p = case["parameters"]
        score = PCSampler(frequencies=tables[p["table"]], decay=p["lambda"], alpha=p["alpha"])
        policy = FixedK(k=max(p["k"], 1), score=score)
        masked = torch.tensor([case["masked"]])
        state, observation = observe(with_mask(case["logits"])[None], masked=masked, policy=policy)
        policy.score.begin(state, state.facts)
        picked = policy.select(state, observation)[0].nonzero()[:, 0].tolist()
        assert picked == sorted(case["commit"])
    assert len(cases) >= 50


# Whole runs -----------------------------------------------------------------------------------------


class Script(ChosenModel):
    """Predicts recorded logits: those of the n-th forward in the n-th call."""

    def __init__(self, forwards):
        """Forwards: `[rows, length, vocabulary]` each; rows beyond the first are further canvases."""
        super().__init__(self.next, forwards[0].shape[-1])
        self.forwards = forwards
        self.calls = 0

    def next(self, tokens, position_ids):
        logits = self.forwards[self.calls]
        self.calls += 1
        rows = torch.arange(len(position_ids))[:, None]
        return logits[rows.clamp_max(len(logits) - 1), position_ids]


class Told(UnmaskingPolicy):
    """Commits what a test says: `commits[n]` in the n-th forward."""

    name: ClassVar[str] = "told"
    commits: tuple[tuple[int, ...], ...]

    def idle_steps(self, targets):
        return len(self.commits)

    def select(self, state, observation):
        return torch.isin(observation.positions.columns, torch.tensor(self.commits[state.forward_index]))


def run_of(model, tokens, targets, **settings):
    """The steps of one canvas, to its end."""
    facts = model.facts
    canvases = prompts.canvases_to_infill([tokens], [targets], facts)
    settings = Sampler(model, batch_size=1, stop_at_eos=False, **settings).settings
    return Run(settings, model, canvases, None, 0, False)


def replayed(case, length, settings, logits_of, prompt=1):
    """Open positions before every step and after the last, from 0 behind the prompt; the final tokens."""
    forwards = []
    for step in case["steps"]:
        values = logits_of(step)
        forwards.append(torch.nn.functional.pad(values, (0, 0, prompt, 0)).expand(1, -1, -1))
    model = Script(forwards)
    targets = [False] * prompt + list(case["masked"])
    fixed = case.get("fixed_tokens", {})
    tokens = [0] * prompt + [int(fixed.get(str(i), 0)) for i in range(length)]
    run = run_of(model, tokens, targets, **settings)
    found = []
    for step in run:
        found.append(set((step.state.masked[0].nonzero()[:, 0] - prompt).tolist()))
    found.append(set())
    return found, run.result.sequences[0, prompt:].tolist()


def whole(step):
    return with_mask(step["logits"])


def opened(case):
    return {i for i, masked in enumerate(case["masked"]) if masked}


def test_klass_decides_as_recorded():
    decisions = 0
    for case in recorded("klass")["cases"]:
        p = case["parameters"]
        if p["block"] != case["length"] or p["unmask_strategy"] != "all":
            continue  # in later blocks the published history reaches back before the block
        rule = {
            "name": "klass",
            "threshold": p["conf_threshold"],
            "kl_threshold": p["kl_threshold"],
            "history": p["history"],
        }
        per_step = -(-sum(case["masked"]) // p["steps"])
        settings = {
            "unmasking": {"name": "first_of", "policies": [rule, {"name": "fixed_k", "k": per_step}]},
            "schedule": "whole_canvas",
        }
        if sum(case["masked"]) % p["steps"]:
            continue
        found, _ = replayed(case, case["length"], settings, whole)
        left = opened(case)
        for before, step in zip(found, case["steps"], strict=False):
            assert before == left
            left = left - set(step["commit"])
            decisions += 1
    assert decisions >= 50


def test_credit_decides_as_recorded():
    decisions = 0
    for case in recorded("credit")["cases"]:
        p = case["parameters"]
        blocks = {tuple(step["block"]) for step in case["steps"]}
        sizes = {stop - start for start, stop in blocks}
        if p["mask_in_vocabulary"] or len(sizes) > 1 or not case["masked"][0]:
            continue  # the published rule may predict the mask, ours may not; our blocks count from a target
        rule = {"name": "credit", "alpha": p["alpha"], "beta": p["beta"], "gamma": p["gamma"]}
        settings = {
            "unmasking": {"name": "confidence_threshold", "threshold": p["threshold"]},
            "transforms": [rule],
            "schedule": {"name": "fixed_blocks", "block_length": sizes.pop()},
        }
        length = case["length"]

        def placed(step, length=length):
            start, stop = step["block"]
            return torch.nn.functional.pad(whole(step), (0, 0, start, length - stop))

        found, _ = replayed(case, length, settings, placed)
        left = opened(case)
        for before, step in zip(found, case["steps"], strict=False):
            assert before == left
            left = left - set(step["commit"])
            decisions += 1
    assert decisions >= 50


def test_dynamic_threshold_decides_as_recorded():
    decisions = 0
    for case in recorded("dynamic_threshold")["runs"]:
        p = case["parameters"]
        size, length = p["block_length"], p["gen_length"]
        case["masked"] = [True] * length
        settings = {
            "unmasking": {
                "name": "dynamic_threshold",
                "threshold": p["threshold"],
                "alpha": p["alpha"],
                "window": p["window"],
            },
            "schedule": {"name": "fixed_blocks", "block_length": size},
        }

        def placed(step, size=size, length=length):
            start = step["block"] * size
            values = whole(step)
            return torch.nn.functional.pad(values, (0, 0, start, length - start - len(values)))

        found, _ = replayed(case, length, settings, placed)
        left = set(range(length))
        for before, step in zip(found, case["steps"], strict=False):
            assert before == left
            left = left - {step["block"] * size + i for i in step["commit"]}
            decisions += 1
    assert decisions >= 50


def test_sched_exits_as_recorded():
    decisions = exits = 0
    modes = {"exp": "exponential"}
    for case in recorded("sched")["cases"]:
        p = case["parameters"]
        plain = {"stat": "mean", "average_over_masked": True, "answer_region": "all", "min_progress": 0.0,
                 "patience_steps": 0, "max_change_ratio": 0.0}  # fmt: skip
        if any(p[key] != value for key, value in plain.items()):
            continue
        commits = tuple(() if s["exit"] else tuple(s["commit"]) for s in case["steps"])
        rule = SchED(
            policy=Told(commits=commits), schedule=modes.get(p["tau_mode"], p["tau_mode"]),
            tau_high=p["tau_high"], tau_low=p["tau_low"], tau_k=p["tau_k"], steps=p["steps"],
        )  # fmt: skip
        run = run_of(
            Script([whole(s)[None] for s in case["steps"]]), [0] * len(case["masked"]), case["masked"],
            unmasking=rule, schedule="whole_canvas",
        )  # fmt: skip
        for step, now in zip(case["steps"], run, strict=True):
            everything = bool((now.decision.commit >= now.observation.masked).all())
            assert everything == step["exit"] or step is case["steps"][-1]
            decisions += 1
            exits += step["exit"]
    assert decisions >= 50
    assert exits >= 5


def test_saber_decides_as_recorded():
    decisions = 0
    for case in recorded("saber")["cases"]:
        p = case["parameters"]
        if p["block_length"] != p["gen_length"]:
            continue  # the published code takes back in earlier blocks too
        settings = {
            "unmasking": {"name": "saber", "least": p["n"], "remask_divisor": p["remask_divisor"]},
            "schedule": "whole_canvas",
        }
        found, final = replayed(case, p["gen_length"], settings, whole)
        left = opened(case)
        for before, step in zip(found, case["steps"], strict=False):
            assert before == left
            left = (left - set(step["commit"])) | set(step["remask"])
            decisions += 1
        if not any(step.get("overwritten_by_tie") for step in case["steps"]):
            assert final == case["final"]
    assert decisions >= 50


def test_p2_decides_as_recorded():
    decisions = 0
    for case in recorded("p2")["cases"]:
        p = case["parameters"]
        if p["kappa"] not in ("linear", "sine", "geometric"):
            continue
        settings = {
            "unmasking": {"name": "p2", "steps": p["num_steps"], "eta": p["eta"], "kappa": p["kappa"]},
            "schedule": "whole_canvas",
        }
        found, final = replayed(case, len(case["masked"]), settings, whole)
        left = opened(case)
        for before, step in zip(found, case["steps"], strict=False):
            assert before == left
            left = (left - set(step["commit"])) | set(step["remask"])
            decisions += 1
        assert final == case["final"]
    assert decisions >= 50


def test_remdm_decides_as_recorded():
    decisions = 0
    for case in recorded("remdm")["cases"]:
        p = case["parameters"]
        if p["eos_token_id"] >= 0:
            continue  # returned early, later blocks still masked
        blocks = p["mask_length"] // p["block_size"]
        settings = {
            "unmasking": {
                "name": "remdm",
                "number": p["remdm_number"],
                "loops": p["sampling_steps"] // blocks,
            },
            "schedule": {"name": "fixed_blocks", "block_length": p["block_size"]},
        }
        found, final = replayed(case, len(case["masked"]), settings, whole)
        left = opened(case)
        for before, step in zip(found, case["steps"], strict=False):
            left = left | set(step["remask"])  # recorded before the forward; ours at the end of the last step
            assert before == left
            left = left - set(step["commit"])
            decisions += 1
        assert final == case["final"]
    assert decisions >= 50


def rounds_of(block, base):
    """The places of a block by round."""
    from dllm_sampling.strategies.unmasking.dilated import dilated_rounds

    (round_of,) = dilated_rounds(torch.tensor([[block]]), block + 2, base).tolist()
    assert round_of[block:] == [-1, -1]
    return [[k for k in range(block) if round_of[k] == n] for n in range(max(round_of) + 1)]


def test_dilated_rounds_are_the_published_ones():
    for entry in recorded("dilated")["schedules"]:
        if entry.get("base", 2) > 1 and entry.get("base_skip", 1) == 1:
            rounds = [sorted(members) for members in entry["rounds"]]
            assert rounds_of(entry["block"], entry.get("base", 2)) == rounds


def test_dilated_decides_as_recorded_until_the_published_code_drops_what_it_skipped():
    decisions = 0
    for case in recorded("dilated")["cases"]:
        p = case["parameters"]
        if p["base_skip"] != 1 or p["base"] < 2:
            continue
        settings = {
            "unmasking": {"name": "dilated", "base": p["base"], "threshold": p["confidence_threshold"]},
            "schedule": {"name": "fixed_blocks", "block_length": p["block"]},
        }
        padding = [case["steps"][-1]] * 40  # ours comes back to skipped positions
        found, _ = replayed(case | {"steps": case["steps"] + padding}, p["gen_length"], settings, whole)
        left = opened(case)
        due = [set(members) for members in rounds_of(p["block"], p["base"])]
        for number, (before, step) in enumerate(zip(found, case["steps"], strict=False)):
            if number == len(due):
                break  # the next block
            assert before == left
            left = left - set(step["commit"])
            decisions += 1
            if set(step["commit"]) != due[number]:
                break  # from here on the published code never looks at what it skipped
    assert decisions >= 25


def test_multi_block_opens_blocks_and_decides_as_recorded():
    decisions = 0
    for case in recorded("multi_block")["cases"]:
        p = case["parameters"]
        if p["variant"] != "d3llm_dream":
            continue  # the others force further commits
        case["masked"] = case["steps"][0]["masked"]
        settings = {
            "unmasking": {"name": "entropy_threshold_alone", "threshold": p["entropy_threshold"]},
            "schedule": {"name": "multi_block", "block_length": p["block"], "add": p["add"]},
        }
        settings["unmasking"] = Below(threshold=p["entropy_threshold"])
        forwards = [torch.nn.functional.pad(whole(s), (0, 0, 1, 0))[None] for s in case["steps"]]
        run = run_of(Script(forwards), [0] * (1 + p["gen_length"]), [False] + case["masked"], **settings)
        for step, now in zip(case["steps"], run, strict=True):
            assert (now.state.masked[0, 1:].tolist()) == step["masked"]
            assert int(now.region.positions.end()) - 2 == step["eligible"][1] - 1
            now.decision = Decision(or_argmin(now.observation, now.decision.commit))
            decisions += 1
    assert decisions >= 50


class Below(UnmaskingPolicy):
    """Entropies strictly below a threshold, nothing else."""

    name: ClassVar[str] = "below"
    threshold: float

    def select(self, state, observation):
        return observation.entropy < self.threshold


def or_argmin(observation, commit):
    """The first unfinished block's surest position where none of it passed, as d3LLM forces it for Dream."""
    first = observation.blocks.masked_fill(~observation.masked, 10**6).amin(1, keepdim=True)
    here = observation.eligible & (observation.blocks == first)
    return commit | (or_the_best(commit, -observation.entropy, here) & ~(commit & here).any(1, keepdim=True))


def test_sliding_offers_and_commits_as_recorded():
    decisions = 0
    for case in recorded("sliding")["cases"]:
        p = case["parameters"]
        if p["threshold"] > 1 or any("eligible_logits" not in step for step in case["steps"]):
            continue
        length = case["length"]
        longest = None if p["max_block_length"] < 0 else p["max_block_length"]
        schedule = {"name": "sliding", "block_length": p["block_length"], "longest": longest}
        rule = {"name": "confidence_threshold", "threshold": p["threshold"]}
        forwards = []
        for step in case["steps"]:
            values = torch.zeros(1, length + 1, len(step["eligible_logits"][0]) + 1)
            forwards.append(values)
            eligible = sorted(i for i in range(step["start"], min(step["end"], length)))
            step["columns"] = eligible
        left = set(range(length))
        for values, step in zip(forwards, case["steps"], strict=True):
            columns = [i for i in step["columns"] if i in left]
            values[0, [i + 1 for i in columns]] = with_mask(step["eligible_logits"])
            left -= set(step["commit"])
        run = run_of(
            Script(forwards), [0] * (length + 1), [False] + [True] * length, unmasking=rule, schedule=schedule
        )
        left = set(range(length))
        for step, now in zip(case["steps"], run, strict=True):
            inside = now.region.positions.columns[now.region.positions.inside] - 1
            assert (int(inside.min()), int(inside.max()) + 1) == (step["start"], min(step["end"], length))
            assert set((now.state.masked[0, 1:].nonzero()[:, 0]).tolist()) == left
            left -= set(step["commit"])
            decisions += 1
    assert decisions >= 50


# Caches: which positions each forward computes ------------------------------------------------------


def computed(step):
    positions = step.plan.positions
    return set(positions.columns[0][positions.inside[0]].tolist())


def told(case, prompt, length, forwards, **settings):
    """The steps of a run in which the recorded positions are committed."""
    values = torch.zeros(1, length, 5)
    model = Script([values] * (len(forwards) + 1))
    commits = tuple(tuple(step["commit"]) for step in forwards)
    targets = [i >= prompt for i in range(length)]
    return run_of(model, [0] * length, targets, unmasking=Told(commits=commits), **settings)


def test_trailing_recomputes_what_the_dsb_cache_does():
    forwards = 0
    for case in recorded("windowed")["cases"]:
        p = case["parameters"]
        if case["policy"] != "dsb-cache":
            continue
        longest = None if p["max_block_length"] < 0 else p["max_block_length"]
        run = told(
            case, case["prompt"], case["length"], case["forwards"],
            schedule={"name": "sliding", "block_length": p["block_length"], "longest": longest},
            cache={"name": "commit_refresh", "commits": p["block_length"],
                   "policy": {"name": "trailing", "left": p["prefix_window"]}},
        )  # fmt: skip
        for step, now in zip(case["forwards"], run, strict=True):
            assert computed(now) == set(range(step["start"], min(step["stop"], case["length"])))
            forwards += 1
    assert forwards >= 50


def test_trailing_recomputes_what_dcd_does():
    forwards = 0
    for case in recorded("windowed")["cases"]:
        p = case["parameters"]
        kind, _, width = p.get("cache_type", "").partition("-delay")
        if case["policy"] != "delay" or p["window_type"] != "sliding" or not width or case["eos_from"]:
            continue
        if p.get("shifted_logits"):
            continue  # Dream's rows; the engine adds them by itself
        run = told(
            case, case["prompt"], case["length"], case["forwards"],
            schedule={"name": "sliding", "block_length": p["initial_window_length"],
                      "longest": p["max_window_length"]},
            cache={"name": "commit_refresh", "commits": p["refresh_count"],
                   "policy": {"name": "trailing", "left": 0, "right": int(width) if kind == "dual" else None,
                              "delay": int(width), "prompt": False}},
        )  # fmt: skip
        for step, now in zip(case["forwards"], run, strict=True):
            assert computed(now) == set(range(step["start"], step["stop"]))
            forwards += 1
    assert forwards >= 50


def test_windowed_recomputes_what_vicinity_refresh_does_inside_a_block():
    forwards = 0
    for case in recorded("windowed")["cases"]:
        p = case["parameters"]
        if case["policy"] != "vicinity" or p["start_block_align"] or p["maximum_unroll"] > 1:
            continue
        cache = {"name": "windowed", "left": p["prefix_look"], "right": p["after_look"]}
        run = told(
            case, case["prompt"], case["length"], [s for s in case["forwards"] if s["commit"]],
            schedule={"name": "fixed_blocks", "block_length": p["block_length"]}, cache=cache,
        )  # fmt: skip
        windows = {tuple(s["block"]): (s["start"], s["stop"]) for s in case["forwards"] if not s["full"]}
        for now in run:
            span = now.region.span
            if not now.region.starts_block and (span.start, span.stop) in windows:
                start, stop = windows[span.start, span.stop]
                assert computed(now) == set(range(start, stop))
                forwards += 1
    assert forwards >= 50


def test_delayed_recomputes_what_dkv_cache_does():
    forwards = 0
    for case in recorded("delayed")["cases"]:
        p = case["parameters"]
        if p["variant"] != "llada decode":
            continue
        run = told(
            case, case["prompt"], case["length"], case["steps"],
            schedule={"name": "fixed_blocks", "block_length": p["block_length"]},
            cache={"name": "delayed", "interval": p["refresh_interval"]},
        )  # fmt: skip
        for step, now in zip(case["steps"], run, strict=True):
            assert computed(now) == set(step["recompute"])
            forwards += 1
    assert forwards >= 50


def test_suffix_window_shows_what_streaming_dllm_shows():
    forwards = 0
    for case in recorded("suffix_window")["cases"]:
        p = case["parameters"]
        if p["rule"] != "streaming window + tail":
            continue
        prompt = case["prompt"]
        steps = [s | {"commit": [i + prompt for i in s["commit"]]} for s in case["steps"]]
        run = told(
            case, prompt, prompt + case["length"], steps,
            schedule={"name": "fixed_blocks", "block_length": p["block_length"]},
            cache={"name": "suffix_window", "policy": "prefix", "window": p["window"], "tail": p["tail"]},
        )  # fmt: skip
        for step, now in zip(case["steps"], run, strict=False):
            start, stop = step["block"]
            first = 0 if step["full"] else start + prompt
            expected = set(range(first, stop + prompt)) | {i + prompt for i in step["suffix"]}
            assert computed(now) == expected
            forwards += 1
    assert forwards >= 50


def test_suffix_window_keeps_distances_with_dpads_chances():
    from dllm_sampling.strategies import FixedBlocks  # noqa: F401 - the schedule by name below

    case = next(c for c in recorded("suffix_window")["cases"] if c["parameters"]["rule"] == "dpad gaussian")
    p = case["parameters"]
    model = Script([torch.zeros(1, 41, 5)] * 2)
    rows = 400
    model.forwards = [torch.zeros(rows, 41, 5)] * 2
    sampler = Sampler(
        model,
        unmasking={"name": "fixed_k", "k": 8},
        schedule={"name": "fixed_blocks", "block_length": p["block_length"]},
        cache={"name": "suffix_window", "policy": "dual", "window": p["window"], "tail": 0,
               "decay": p["k_sigma"], "scale": p["scale"]},
        batch_size=rows,
    )  # fmt: skip
    step = next(sampler.steps([[0]] * rows, 40))
    seen = step.plan.visible[:, 9:].double().mean(0)
    import math

    for distance, share in enumerate(seen.tolist()):
        x = p["k_sigma"] * distance / (p["window"] - 1)
        chance = min(p["scale"] * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), 1.0)
        chance = chance if distance < p["window"] else 0.0
        # Six standard deviations of a share of 400.
        assert abs(share - chance) <= 6 * math.sqrt(chance * (1 - chance) / rows) + 1e-9


# Guidance and schedules by logits -------------------------------------------------------------------


def test_guidance_gives_the_recorded_logits_decisions():
    decisions = 0
    for case in recorded("classifier_free_guidance")["cases"]:
        p = case["parameters"]
        if p["confidence_eos_eot_inf"] or p["cfg_scale"] == 0:
            continue
        length = case["length"]
        forwards = []
        vocabulary = len(case["steps"][0]["logits"][0])
        for step in case["steps"]:
            pair = torch.zeros(2, length + 1, vocabulary + 1)
            for row, name in enumerate(("logits", "unconditional_logits")):
                pair[row, [i + 1 for i in step["open"]]] = with_mask(step[name]).clamp_min(-1000.0)
            forwards.append(pair)
        transforms = [{"name": "classifier_free_guidance", "scale": p["cfg_scale"]}]
        if p["logits_eos_inf"]:
            transforms.append({"name": "suppress_tokens", "tokens": [6]})
        run = run_of(
            Script(forwards), [0] * (length + 1), [False] + [True] * length,
            unmasking={"name": "fixed_k", "steps": p["steps"]},
            schedule={"name": "fixed_blocks", "block_length": p["block_length"]},
            transforms=transforms,
        )  # fmt: skip
        left = set(range(length))
        for step, now in zip(case["steps"], run, strict=True):
            assert set(now.state.masked[0, 1:].nonzero()[:, 0].tolist()) == left
            left -= set(step["commit"])
            decisions += 1
    assert decisions >= 50


def test_adablock_ends_blocks_where_recorded():
    decisions = 0
    for case in recorded("adablock")["cases"]:
        p = case["parameters"]
        if case["block_start"] or p["threshold"] is None:
            continue  # later blocks are in the whole runs
        shown = with_mask(case["logits_from_block_start"])
        length = p["gen_length"]
        values = torch.zeros(1, length + 1, shown.shape[-1])
        values[0, 1 + case["block_start"] : 1 + case["block_start"] + len(shown)] = shown
        schedule = {
            "name": "adablock", "block_length": p["default_length"], "threshold": p["threshold"],
            "share": 0.25, "delimiters": p["delimiters"],
        }  # fmt: skip
        run = run_of(
            Script([values, values]), [0] * (length + 1), [False] + [True] * length,
            unmasking={"name": "fixed_k", "k": 1}, schedule=schedule,
        )  # fmt: skip
        step = next(run)
        eligible = step.observation.eligible[0].nonzero()[:, 0]
        assert int(eligible.max()) + 1 == case["block_end"], case["outcome"]
        decisions += 1
    assert decisions >= 20
