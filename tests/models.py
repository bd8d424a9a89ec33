"""Models that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from dllm_sampling import load_model
from dllm_sampling.testing import ChosenModel

DATA = Path(__file__).parent / "data"


@cache
def tiny(family="llada"):
    """A tiny random checkpoint in the family's published format."""
    return load_model(DATA / family)


def hashed(vocab_size=12, scale=4.0):
    """Predictions that depend on every token of the canvas and on the position."""

    def predict(tokens, position_ids):
        context = (tokens * (position_ids + 1)).sum(1, keepdim=True) % 9973
        seeds = (context * 31 + position_ids)[..., None] * 7919 + torch.arange(vocab_size) * 104729
        return torch.sin(seeds.double() * 12.9898).float() * scale

    return ChosenModel(predict, vocab_size)


def table(logits):
    """Predictions that depend on the position alone: `logits [positions, vocabulary]`."""
    return ChosenModel(lambda tokens, position_ids: logits[position_ids], logits.shape[1])


def prompts_of(lengths, family="llada", seed=0):
    """Random prompts, token ids, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 180, (n,), generator=generator).tolist() for n in lengths]


def printed_by(code, site, folder):
    """What `code` prints in a new process in `folder`, with `site` first on the import path."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
