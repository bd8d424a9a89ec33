"""Choosing positions by a score: what many unmasking policies share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dllm_sampling.state.observation import Observation


def log_of(probability: float) -> float:
    """The logarithm, to compare log confidences with; minus infinity at 0."""
    return math.log(probability) if probability else -math.inf


def in_order(scores: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """Eligible positions from the best score down; equal scores go to the lower position.

    Returns the sorted scores `[batch, region]`, finite and behind them -inf where not eligible, and the
    rank of every position, 0 for the best; positions that are not eligible rank behind all that are.
    """
    # Eligible positions may score -inf themselves: they still come before all others.
    kept = scores.clamp_min(torch.finfo(scores.dtype).min).masked_fill(~eligible, -torch.inf)
    ordered, order = kept.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return ordered, torch.empty_like(order).scatter_(-1, order, places)


def top_k(scores: Tensor, eligible: Tensor, k: Tensor | int) -> Tensor:
    """The `k` best eligible positions, or all where there are fewer; `k` an int or `[batch]`."""
    _, rank = in_order(scores, eligible)
    count = k[:, None] if isinstance(k, Tensor) else k
    return (rank < count) & eligible


def reranked(chosen: Tensor, scores: Tensor, observation: Observation) -> Tensor:
    """As many eligible positions as a rule chose by confidence, by `scores` instead.

    chosen: the n most confident eligible positions of each row, for any n; returned as it is where the
        scores are `observation.log_confidence` itself.
    """
    if scores is observation.log_confidence:
        return chosen
    return top_k(scores, observation.eligible, (chosen & observation.eligible).sum(-1))


def or_the_best(chosen: Tensor, scores: Tensor, eligible: Tensor) -> Tensor:
    """`chosen` among the eligible, or, in rows where that is nothing, the position of the best score."""
    chosen = chosen & eligible
    return torch.where(chosen.any(-1, keepdim=True), chosen, top_k(scores, eligible, 1))


def largest(passes: Tensor) -> Tensor:
    """The largest n for which `passes[..., n - 1]` holds, `[..., 1]`; 0 where none does."""
    n = torch.arange(1, passes.shape[-1] + 1, device=passes.device)
    return (n * passes).amax(-1, keepdim=True)


def realigned(values: Tensor, before: Tensor, now: Tensor, fill: float) -> Tensor:
    """`values [batch, region, ...]` of the positions `before [batch, region]`, at the positions `now`.

    Positions that were not there get `fill`; -1 is no position. What a policy remembers of a region it
    reads with this when the region has moved.
    """
    if before.data_ptr() == now.data_ptr() and before.shape == now.shape and before.stride() == now.stride():
        return values  # views of the same columns: the region has not moved
    rest = values.shape[2:]
    same = now[:, :, None] == before[:, None, :]
    found = (same & (now >= 0)[:, :, None]).any(-1)
    index = same.long().argmax(-1)
    taken = values.gather(1, index.view(*index.shape, *[1] * len(rest)).expand(-1, -1, *rest))
    return taken.masked_fill(~found.view(*found.shape, *[1] * len(rest)), fill)
