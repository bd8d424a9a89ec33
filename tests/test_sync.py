"""At most one host synchronisation a step, counted on a CPU; and the counter counts."""

from __future__ import annotations

import pytest
import torch

from dllm_sampling import DecodingState, Sampler
from dllm_sampling.testing import SyncCounter
from tests.models import prompts_of, tiny
from tests.test_engine import CACHES, UNMASKING, name_of

VECTOR = torch.arange(6)

TRIPS = {
    "item": lambda: torch.tensor(3).item(),
    "tolist": lambda: VECTOR.tolist(),
    "numpy": lambda: VECTOR.numpy(),
    "cpu": lambda: VECTOR.cpu(),
    "to": lambda: VECTOR.to("cpu"),
    "bool": lambda: bool(torch.tensor(True)),
    "int": lambda: int(torch.tensor(3)),
    "float": lambda: float(torch.tensor(3.0)),
    "__index__": lambda: [1, 2, 3][torch.tensor(1)],
    "nonzero": lambda: VECTOR.nonzero(),
    "unique": lambda: VECTOR.unique(),
    "masked_select": lambda: VECTOR.masked_select(VECTOR > 2),
    "equal": lambda: VECTOR.equal(VECTOR),
    "repeat_interleave": lambda: VECTOR.repeat_interleave(VECTOR),
    "boolean indexing": lambda: VECTOR[VECTOR > 2],
}


@pytest.mark.parametrize("name", TRIPS)
def test_the_counter_counts(name):
    with SyncCounter() as counter:
        TRIPS[name]()
    assert counter.counts[name] >= 1


def test_the_counter_leaves_other_operations_alone():
    with SyncCounter() as counter:
        torch.where(VECTOR > 2, VECTOR, 0).cumsum(0).float().to(torch.float64).masked_fill(VECTOR > 1, 0.0)
        VECTOR.repeat_interleave(2)
    assert counter.total == 0


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_step_synchronises_once(batch, temperature):
    prompts = prompts_of([3 + i % 5 for i in range(batch)])
    for unmasking in UNMASKING:
        for cache in CACHES:
            sampler = Sampler(
                tiny(),
                unmasking=unmasking,
                cache=cache,
                schedule={"name": "fixed_blocks", "block_length": 8},
                sampling={"temperature": temperature},
                batch_size=batch,
                stop_at_eos=False,
            )
            run = sampler.steps(prompts, gen_length=16)
            next(run)
            # From one yield to the next: commit, read back, and the next forward and decision.
            for _ in range(6):
                with SyncCounter() as counter:
                    step = next(run, None)
                if step is None:
                    break
                assert counter.total == 1, (name_of(unmasking), name_of(cache), counter.counts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_only_the_read_back_waits(monkeypatch):
    from dllm_sampling import load_model
    from tests.models import DATA

    read_back = DecodingState._read_back

    def allowed(self, troubles):
        torch.cuda.set_sync_debug_mode("default")
        read_back(self, troubles)
        torch.cuda.set_sync_debug_mode("error")

    model = load_model(DATA / "llada", device="cuda")
    sampler = Sampler(model, cache="dual", schedule={"name": "fixed_blocks", "block_length": 8})
    run = sampler.steps(prompts_of([4, 7]), gen_length=16)
    next(run)
    monkeypatch.setattr(DecodingState, "_read_back", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
