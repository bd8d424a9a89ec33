"""Whole generations: every shipped cache with every kind of rule.

    python benchmarks/generation.py [--shape 25M] [--prompt 256] [--gen-length 256] [--batch 1] [--threads 1]

A random model whose logits are sharp enough for thresholds to commit several tokens at once. Prints seconds,
tokens a forward, positions computed, and the ratio to one token a forward without a cache. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import SHAPES, finish, interleaved, machine, median, random_prompt, write_checkpoint

from dllm_sampling import Sampler, load_model

RULES: dict[str, dict[str, Any]] = {
    "fixed-k 1": {"name": "fixed_k", "k": 1},
    "fixed-k 4": {"name": "fixed_k", "k": 4},
    "threshold 0.9": {"name": "confidence_threshold", "threshold": 0.9},
    "factor 1": {"name": "factor", "factor": 1.0},
}
CACHES = ("none", "prefix", "dual")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="25M", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sharpness", type=float, default=16.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), args.shape, sharpness=args.sharpness)
        model = load_model(checkpoint, device=args.device, dtype=args.dtype, compile=args.compile)
    prompts = [random_prompt(args.shape, args.prompt, seed) for seed in range(args.batch)]
    results: dict[str, Any] = {}

    def way(name: str, rule: str, cache: str) -> Any:
        sampler = Sampler(
            model,
            unmasking=RULES[rule],
            cache=cache,
            schedule={"name": "fixed_blocks", "block_length": args.block_length},
            stop_at_eos=False,
            batch_size=args.batch,
        )

        def generate() -> None:
            results[name] = sampler.generate(prompts, gen_length=args.gen_length)

        return generate

    names = {f"{rule}, {cache}": (rule, cache) for rule in RULES for cache in CACHES}
    ways = {name: way(name, *which) for name, which in names.items()}
    seconds = interleaved(ways, args.repeats, args.device)
    first = median(seconds["fixed-k 1, none"])
    rows = {}
    print(f"{'sampler':24} {'seconds':>8} {'ratio':>7} {'tokens/forward':>15} {'positions':>11}")
    for name, taken in seconds.items():
        result = results[name]
        per_forward = args.batch * args.gen_length / int(result.row_forwards.sum())
        spent = median(taken)
        computed = result.positions_computed
        print(f"{name:24} {spent:8.3f} {first / spent:6.2f}x {per_forward:15.2f} {computed:11d}")
        rows[name] = {
            "seconds": spent,
            "ratio": first / spent,
            "tokens_per_forward": per_forward,
            "forwards": result.forwards,
            "refreshes": result.refreshes,
            "positions_computed": result.positions_computed,
        }
    finish(
        {"benchmark": "generation", "machine": machine(args.device), "settings": vars(args), "samplers": rows}
    )


if __name__ == "__main__":
    main()
