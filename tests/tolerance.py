"""How far two float32 computations of the same thing may lie apart, on whatever processor.

Processors and libraries add the same products in different orders. A sum of n of them is then wrong by about
sqrt(n) units of rounding of its largest parts (Higham and Mary, 2019: more than a few times that is as good as
impossible); n is the number of terms on the longest way through the model. What decodes differently for
another reason, a wrong mask, position or weight, is off by thousands of times more.
"""

from __future__ import annotations

import math

import torch

_TIMES = 4  # sqrt(n) is the size that is usual; this many of it do not occur
_ROUNDING = torch.finfo(torch.float32).eps / 2


def of_logits(model, logits):
    """The bound for logits of a backbone that are about as large as `logits`; each side may be off by it."""
    config = model.model.config
    per_layer = 4 * config.hidden_size + config.intermediate_size + logits.shape[-2]
    terms = config.num_hidden_layers * per_layer + config.hidden_size
    return 2 * _TIMES * _ROUNDING * math.sqrt(terms) * float(logits.abs().max())


def of_confidence(model, length=64):
    """The bound for probabilities: the derivative of a softmax is at most a half, for each of two logits."""
    ids = torch.arange(length)[None] % 100
    rows = torch.arange(length)
    with torch.no_grad():
        logits = model.logits(ids, rows[None], None, None, rows)
    return of_logits(model, logits)
