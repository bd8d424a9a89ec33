"""Counter-based noise: the same numbers for a row whatever its batch, padding or device order.

Keys are hashed with the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), in wrapping int64
arithmetic, so that every number is a pure function of its key.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    # Torch shifts signed integers arithmetically; the mask makes it a logical shift.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's bijective finaliser on int64."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def row_seeds(seed: int, rows: Tensor) -> Tensor:
    """One seed a prompt from the call's seed and the prompts' places in the call, int64 `[n]`."""
    return mix(mix(rows * _GOLDEN + _wrap(seed)) + _GOLDEN)


def keys(seeds: Tensor, steps: Tensor, positions: Tensor, purpose: str) -> Tensor:
    """Broadcast seeds, steps and positions to one int64 key each; `purpose` separates uses."""
    salt = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big", signed=True)
    key = mix(seeds + salt)
    key = mix(key + steps * _GOLDEN)
    return mix(key + positions * _GOLDEN)


def uniform(key: Tensor) -> Tensor:
    """Float64 in the open interval (0, 1), 52 bits each."""
    return (_shift(mix(key + _GOLDEN), 12).double() + 0.5) * 2.0**-52


def gumbel(key: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise, float64 `[*key.shape, count]`: one number for each key and token."""
    tokens = torch.arange(1, count + 1, device=key.device) * _GOLDEN
    return uniform(key[..., None] + tokens).log_().neg_().log_().neg_()


def _wrap(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
