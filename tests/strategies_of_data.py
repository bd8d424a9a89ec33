"""Hypothesis strategies that several test modules share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st


@st.composite
def logits(draw, batch=(1, 3), width=(1, 12), vocabulary=(3, 9), scale=(0.0, 12.0)):
    """Logits `[batch, width, vocabulary]`; from flat to nearly certain, with exact ties now and then."""
    shape = (draw(st.integers(*batch)), draw(st.integers(*width)), draw(st.integers(*vocabulary)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(shape, generator=generator) * draw(st.floats(*scale))
    if draw(st.booleans()):
        values = values.round()
    if draw(st.booleans()):
        values[..., 0] += draw(st.floats(0, 40))
    return values


@st.composite
def observations(draw, **kwargs):
    """Logits, and which positions are masked: at least one in every row."""
    values = draw(logits(**kwargs))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    masked = torch.rand(values.shape[:2], generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    column = torch.randint(values.shape[1], (values.shape[0], 1), generator=generator)
    return values, masked.scatter(1, column, True)
