"""Choosing positions by a score: what many unmasking policies share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dllm_sampling.state.observation import Observation


def log_of(probability: float) -> float:
    """The logarithm of a setting, to compare log confidences with.

    Args:
        probability: From 0 to 1.

    Returns:
        Its natural logarithm, minus infinity at 0.
    """
    return math.log(probability) if probability else -math.inf


def in_order(scores: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """Eligible positions from the best score down; equal scores go to the lower position.

    Args:
        scores: `[batch, region]`.
        eligible: Bool `[batch, region]`.

    Returns:
        The sorted scores `[batch, region]`, finite and behind them -inf where not eligible, and the rank of
            every position, 0 for the best; positions that are not eligible rank behind all that are.
    """
    # Eligible positions may score -inf themselves: they still come before all others.
    kept = scores.clamp_min(torch.finfo(scores.dtype).min).masked_fill(~eligible, -torch.inf)
    ordered, order = kept.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return ordered, torch.empty_like(order).scatter_(-1, order, places)


def top_k(scores: Tensor, eligible: Tensor, k: Tensor | int) -> Tensor:
    """The best eligible positions; equal scores go to the lower position.

    Args:
        scores: `[batch, region]`.
        eligible: Bool `[batch, region]`.
        k: How many, one number or `[batch]`.

    Returns:
        Bool `[batch, region]`: k positions of a row, or all where fewer are eligible.
    """
    _, rank = in_order(scores, eligible)
    count = k[:, None] if isinstance(k, Tensor) else k
    return (rank < count) & eligible


def reranked(chosen: Tensor, scores: Tensor, observation: Observation) -> Tensor:
    """As many eligible positions as a rule chose by confidence, by `scores` instead.

    Args:
        chosen: The n most confident eligible positions of each row, for any n.
        scores: `[batch, region]`.
        observation: What the forward shows of the region.

    Returns:
        Bool `[batch, region]`, the n best of each row; `chosen` as it is where the scores are
            `observation.log_confidence` itself.
    """
    if scores is observation.log_confidence:
        return chosen
    return top_k(scores, observation.eligible, (chosen & observation.eligible).sum(-1))


def or_the_best(chosen: Tensor, scores: Tensor, eligible: Tensor) -> Tensor:
    """What was chosen, or, in rows where that is nothing, the position of the best score.

    Args:
        chosen: Bool `[batch, region]`.
        scores: `[batch, region]`.
        eligible: Bool `[batch, region]`.

    Returns:
        Bool `[batch, region]`, eligible positions alone.
    """
    chosen = chosen & eligible
    return torch.where(chosen.any(-1, keepdim=True), chosen, top_k(scores, eligible, 1))


def largest(passes: Tensor) -> Tensor:
    """The largest number for which something holds.

    Args:
        passes: Bool `[..., count]`, whether it holds for n at index n - 1.

    Returns:
        Int64 `[..., 1]`, the largest n that passes; 0 where none does.
    """
    n = torch.arange(1, passes.shape[-1] + 1, device=passes.device)
    return (n * passes).amax(-1, keepdim=True)


def realigned(values: Tensor, before: Tensor, now: Tensor, fill: float) -> Tensor:
    """What was remembered of a region, at the positions of another one.

    What a policy remembers of a region it reads with this, since the region may have moved.

    Args:
        values: `[batch, region before, ...]`.
        before: `[batch, region before]`, the columns that they belong to; -1 is none.
        now: `[batch, region]`, the columns that are asked for; -1 is none.
        fill: What positions get that were not there.

    Returns:
        `[batch, region, ...]`.
    """
    if before.data_ptr() == now.data_ptr() and before.shape == now.shape and before.stride() == now.stride():
        return values  # views of the same columns: the region has not moved
    rest = values.shape[2:]
    same = now[:, :, None] == before[:, None, :]
    found = (same & (now >= 0)[:, :, None]).any(-1)
    index = same.long().argmax(-1)
    taken = values.gather(1, index.view(*index.shape, *[1] * len(rest)).expand(-1, -1, *rest))
    return taken.masked_fill(~found.view(*found.shape, *[1] * len(rest)), fill)
