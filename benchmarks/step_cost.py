"""What a refresh, a prefix step and a dual step cost: bare forward, engine step, and the floor.

    python benchmarks/step_cost.py [--shape 25M] [--canvas 512] [--batch 1] [--threads 1] [--device cpu]

The bare forward is the model on the same positions with the same KV buffer, logits for the block's rows. The
engine step adds planning, hooks, confidence, commit and the read-back. The floor is the larger of operations
over this machine's rate and weight bytes over its bandwidth, both measured in the run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    SHAPES,
    finish,
    head_parameters,
    interleaved,
    machine,
    median,
    parameters,
    random_prompt,
    rates,
    write_checkpoint,
)

from dllm_sampling import Backbone, Positions, Sampler, load_model


def bare(model: Backbone, canvas: torch.Tensor, span: slice, block: slice) -> Callable[[], Any]:
    """The model on `span` of the canvas with everything else cached, logits of `block`."""
    batch, length = canvas.shape
    positions = torch.arange(length, device=canvas.device).expand(batch, -1)
    buffer = model.new_buffer(length)
    everything = torch.arange(length, device=canvas.device)[block]
    with torch.no_grad():
        model.logits(canvas, positions, None, buffer.at(slice(0, length), None), everything)
    rows = torch.arange(block.start - span.start, block.stop - span.start, device=canvas.device)
    width = span.stop - span.start
    if width < length and model.execution.width(width) == width:  # compiled, as the engine's is
        where = positions[:, span].contiguous()
        ids = canvas[:, span].contiguous()
        chosen = rows.expand(batch, -1).contiguous()
        seen = torch.arange(buffer.slots, device=canvas.device)[None, None, None] < length
        mask = seen.expand(batch, 1, width, -1)

        def compiled() -> None:
            with torch.no_grad():
                at = buffer.at(Positions(where), None, seen=buffer.slots)
                model.execution.step(ids, where, mask, at, chosen)

        return compiled

    def forward() -> None:
        with torch.no_grad():
            model.logits(canvas[:, span], positions[:, span], None, buffer.at(span, None), rows)

    return forward


def engine(model: Backbone, prompts: list[list[int]], gen: int, block: int, cache: str) -> Callable[[], Any]:
    """One engine step of a cache policy: a run is set up to its second forward, then steps are taken."""
    sampler = Sampler(
        model,
        unmasking={"name": "fixed_k", "k": 1},
        cache=cache,
        schedule={"name": "fixed_blocks", "block_length": block},
        stop_at_eos=False,
        batch_size=len(prompts),
    )
    state: dict[str, Any] = {"left": 0}

    def step() -> None:
        if state["left"] == 0:
            state["run"] = sampler.steps(prompts, gen)
            for _ in itertools.islice(state["run"], 2 if cache != "none" else 1):
                pass
            state["left"] = block - 4
        next(state["run"])
        state["left"] -= 1

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="25M", choices=SHAPES)
    parser.add_argument("--canvas", type=int, default=512)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), args.shape)
        model = load_model(checkpoint, device=args.device, dtype=args.dtype, compile=args.compile)
    before, gen = args.canvas // 2, args.canvas - args.canvas // 2
    prompts = [random_prompt(args.shape, before, seed) for seed in range(args.batch)]
    mask = model.facts.mask_token_id
    canvas = torch.tensor([prompt + [mask] * gen for prompt in prompts], device=args.device)
    block = slice(before, before + args.block)
    spans = {"refresh": slice(0, args.canvas), "prefix": slice(before, args.canvas), "dual": block}
    caches = {"refresh": "none", "prefix": "prefix", "dual": "dual"}
    ways: dict[str, Callable[[], Any]] = {}
    for name, span in spans.items():
        ways[f"{name}: bare"] = bare(model, canvas, span, block)
        ways[f"{name}: engine"] = engine(model, prompts, gen, args.block, caches[name])
    seconds = interleaved(ways, args.repeats, args.device)
    rate = rates(args.device, dtype)
    size = torch.empty(0, dtype=dtype).element_size()
    result: dict[str, Any] = {
        "benchmark": "step_cost",
        "machine": machine(args.device),
        "settings": vars(args),
    }
    print(f"{'step':9} {'bare':>9} {'engine':>9} {'ratio':>6} {'floor':>9}")
    for name, span in spans.items():
        width = span.stop - span.start
        weights, head = parameters(args.shape), head_parameters(args.shape)
        d = SHAPES[args.shape]["d_model"]
        attention = 4 * width * args.canvas * d * SHAPES[args.shape]["n_layers"]
        operations = args.batch * (2 * width * weights + 2 * args.block * head + attention)
        floor = max(operations / rate["flops"], (weights + head) * size / rate["bytes"])
        own, engines = median(seconds[f"{name}: bare"]), median(seconds[f"{name}: engine"])
        # Taken pair by pair: what slows the machine for a moment slows both.
        ratio = median(
            [e / b for e, b in zip(seconds[f"{name}: engine"], seconds[f"{name}: bare"], strict=True)]
        )
        print(f"{name:9} {1e3 * own:7.1f}ms {1e3 * engines:7.1f}ms {ratio:5.3f}x {1e3 * floor:7.1f}ms")
        result[name] = {"bare": own, "engine": engines, "ratio": ratio, "floor": floor}
    finish(result | {"rates": rate})


if __name__ == "__main__":
    main()
