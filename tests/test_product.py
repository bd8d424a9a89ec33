"""Samplers drawn from the whole product of what is installed: each run ends, and no row depends on others.

Decoded in float64, so that a difference is never rounding. A larger run, of 10,000 rows or any other number:
`python -m tests.test_product 3000 [FIRST_SEED]`.
"""

from __future__ import annotations

import random
import sys
from collections import Counter

import pytest
import torch

from dllm_sampling import DllmSamplingError, PluginError, Sampler, registry
from tests import product


def drawn(seed):
    """A drawn sampler's settings, the family, and the seed of its input."""
    rng = random.Random(seed)
    family = rng.choice(["llada", "dream"])
    settings, _ = product.sampler(rng, product.model(family))
    return settings, family, rng.randrange(10**9)


def compared(seed):
    """The rows of a drawn call, and those which are not in a batch what they are alone."""
    settings, family, source = drawn(seed)
    backbone = product.model(family)
    together, alone = (product.decode(settings, random.Random(source), backbone, size) for size in (8, 1))
    return len(alone.texts), product.differing_rows(alone, together)


@pytest.mark.parametrize("part", range(8))
def test_rows_do_not_depend_on_their_batch_mates(part):
    rows = refused = 0
    for seed in range(part * 18, part * 18 + 18):
        try:
            count, differing = compared(seed)
        except DllmSamplingError:
            refused += 1
            continue
        assert not differing, (seed, differing, drawn(seed)[0])
        rows += count
    assert rows >= 20
    assert refused <= 9


def test_every_installed_policy_is_drawn():
    seen = Counter()

    def walk(value):
        if isinstance(value, dict):
            seen[value.get("name")] += 1
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                walk(item)

    for seed in range(1500):
        walk(product.sampler_settings(random.Random(seed)))
    for kind in ("unmasking", "cache", "schedule", "transforms", "wrappers"):
        assert set(registry().names(kind)) <= set(seen), kind


@pytest.mark.parametrize("seed", range(200, 290))
def test_no_row_takes_more_steps_than_its_idle_steps_and_targets(seed):
    settings, family, source = drawn(seed)
    rng = random.Random(source)
    made = Sampler(product.model(family), batch_size=4, **settings)
    gen_length = rng.randint(1, 12)
    rows = product.prompts(rng, 3)
    try:
        allowed = made.settings.unmasking.idle_steps(gen_length) + gen_length
        steps = made.steps(rows, gen_length)
        for number, _ in enumerate(steps):
            assert number < len(rows) * allowed
    except DllmSamplingError:
        return
    result = steps.result
    assert int(result.row_forwards.max()) <= allowed
    assert not (result.sequences[:, -gen_length:] == made.model.facts.mask_token_id).any()


def test_two_wrappers_of_one_kind_leave_no_target_behind():
    """The region must not lose a position for every wrapper around it."""
    settings = {"wrappers": ["fast_dllm_dream"] * 3, "schedule": {"name": "fixed_blocks", "block_length": 4}}
    result = Sampler(product.model("dream"), cache="dual", **settings).generate([[1, 2], [3]], 12)
    assert int(result.row_forwards.max()) <= 12


def test_a_guidance_given_twice_is_refused_by_the_name_of_its_canvas():
    sampler = Sampler(product.model(), transforms=["classifier_free_guidance"] * 2)
    with pytest.raises(PluginError, match="two policies of this run call a canvas 'unconditional'"):
        sampler.generate([[1, 2]], 4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tally = Counter()
    start = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    for seed in range(start, start + int(sys.argv[1])):
        try:
            rows, differing = compared(seed)
            tally.update(ran=1, rows=rows, differing=len(differing))
            if differing:
                print("rows differ:", seed, differing, drawn(seed)[0])
        except DllmSamplingError:
            tally["refused"] += 1
    print(dict(tally))
