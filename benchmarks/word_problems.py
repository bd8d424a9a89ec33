"""Accuracy and tokens per forward of cache x unmasking on the held-out word problems.

    python benchmarks/word_problems.py [--limit 200] [--block-length 32] [--short]

Prints a table; the last line is JSON. Speeds are ratios to the first line within one run.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from dllm_sampling import Sampler, load_model, registry

UNMASKING: dict[str, Any] = {
    "fixed_k k=1": {"name": "fixed_k", "k": 1},
    "fixed_k k=2": {"name": "fixed_k", "k": 2},
    "fixed_k k=4": {"name": "fixed_k", "k": 4},
    "fixed_k k=8": {"name": "fixed_k", "k": 8},
    "threshold 0.95": {"name": "confidence_threshold", "threshold": 0.95},
    "threshold 0.9": {"name": "confidence_threshold", "threshold": 0.9},
    "threshold 0.7": {"name": "confidence_threshold", "threshold": 0.7},
    "threshold 0.5": {"name": "confidence_threshold", "threshold": 0.5},
    "factor 0.5": {"name": "factor", "factor": 0.5},
    "factor 1.0": {"name": "factor", "factor": 1.0},
    "factor 1.5": {"name": "factor", "factor": 1.5},
}
SHORT = ("fixed_k k=1", "fixed_k k=8", "threshold 0.9")


def main() -> None:
    """Decode and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--short", action="store_true", help="three rules instead of all")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model()
    task = registry().get("task", "word_problems")()
    examples = task.examples()[: args.limit]
    rows: list[dict[str, Any]] = []
    print(f"{len(examples)} problems, blocks of {args.block_length}, {task.gen_length} targets")
    print(f"{'unmasking':16} {'cache':8} {'right':>7} {'tokens/forward':>15} {'speed':>7}")
    for rule in SHORT if args.short else UNMASKING:
        for cache in ("none", "prefix", "dual"):
            sampler = Sampler(
                model,
                unmasking=UNMASKING[rule],
                cache=cache,
                schedule={"name": "fixed_blocks", "block_length": args.block_length},
                batch_size=args.batch_size,
            )
            result = sampler.generate([e.prompt for e in examples], gen_length=task.gen_length)
            pairs = zip(result.texts, examples, strict=True)
            right = sum(task.is_correct(text, example) for text, example in pairs)
            row = {
                "unmasking": rule,
                "cache": cache,
                "accuracy": right / len(examples),
                "tokens_per_forward": result.tokens_per_forward,
                "seconds": result.seconds,
                "forwards": result.forwards,
            }
            rows.append(row)
            speed = rows[0]["seconds"] / result.seconds
            print(
                f"{rule:16} {cache:8} {row['accuracy']:7.1%} {result.tokens_per_forward:15.2f} {speed:6.1f}x",
                flush=True,
            )
    print(json.dumps({"problems": len(examples), "block_length": args.block_length, "rows": rows}))


if __name__ == "__main__":
    main()
