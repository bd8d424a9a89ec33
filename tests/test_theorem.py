"""Theorem 1 of Fast-dLLM (arXiv:2505.22618): when committing in parallel is as good as one at a time.

If every marginal's mode has probability above 1 - epsilon and (n + 1) epsilon <= 1, then the n marginal
modes together are the mode of the joint distribution. The bound is tight.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dllm_sampling import Sampler
from dllm_sampling.testing import ChosenModel


def model_of(joint):
    """A masked diffusion model that knows `joint`: the marginals given what is committed.

    joint: probabilities of all strings, `[values] * n`. Position 0 of the canvas is the prompt.
    """
    n, values = joint.ndim, joint.shape[0]
    mask = values + 1  # ids: the values, the end of sequence, the mask

    def predict(tokens, position_ids):
        logits = torch.full((*tokens.shape, values + 2), -torch.inf, dtype=torch.float64)
        for row, canvas in enumerate(tokens.tolist()):
            given_ = joint
            for axis, token in enumerate(canvas[1:]):
                if token != mask:
                    kept = torch.zeros(values, dtype=torch.float64)
                    kept[token] = 1
                    given_ = given_ * kept.view([-1 if a == axis else 1 for a in range(n)])
            for axis in range(n):
                others = [a for a in range(n) if a != axis]
                logits[row, axis + 1, :values] = given_.sum(others).log() if others else given_.log()
        logits[:, 0, 0] = 0.0
        return logits

    return ChosenModel(predict, values + 2)


def decode(joint, threshold):
    sampler = Sampler(
        model_of(joint),
        unmasking={"name": "confidence_threshold", "threshold": threshold},
        schedule="whole_canvas",
        stop_at_eos=False,
    )
    result = sampler.generate([[0]], gen_length=joint.ndim)
    return tuple(result.sequences[0, 1:].tolist()), result.forwards


def marginals(joint):
    return [joint.sum([b for b in range(joint.ndim) if b != a]) for a in range(joint.ndim)]


@given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 2**31), st.floats(0.6, 0.99))
def test_within_the_bound_all_at_once_is_the_mode_of_the_joint(n, values, seed, weight):
    generator = torch.Generator().manual_seed(seed)
    joint = torch.rand([values] * n, generator=generator, dtype=torch.float64) ** 4
    joint = joint / joint.sum() * (1 - weight)
    star = tuple(torch.randint(values, (n,), generator=generator).tolist())
    joint[star] += weight
    epsilon = 1 - min(m.max().item() for m in marginals(joint)) + 1e-4
    assume((n + 1) * epsilon <= 1)
    tokens, forwards = decode(joint, 1 - epsilon)
    best = max(itertools.product(range(values), repeat=n), key=lambda x: joint[x].item())
    assert forwards == 1
    assert tokens == best
    # One token at a time comes to the same.
    assert decode(joint, 1.0)[0] == best


@given(st.integers(2, 5), st.floats(1e-3, 0.03))
def test_beyond_the_bound_it_may_miss_the_mode(n, excess):
    # Strings that differ from 0...0 in one place have mass m a piece, 0...0 what is left.
    m = 1 / (n + 1) + excess
    assume(1 - n * m > 0)
    joint = torch.zeros([2] * n, dtype=torch.float64)
    for place in range(n):
        joint[tuple(int(i == place) for i in range(n))] = m
    zeros = (0,) * n
    joint[zeros] = 1 - n * m
    assert all(p[0].item() > 1 - m - 1e-9 for p in marginals(joint))
    tokens, forwards = decode(joint, 1 - m - 1e-6)
    assert (tokens, forwards) == (zeros, 1)
    assert joint[zeros] < joint.max()  # not the mode: (n + 1) epsilon is just above 1


def test_the_bound_itself():
    n = 3
    m = 1 / (n + 1) - 1e-6
    joint = torch.zeros([2] * n, dtype=torch.float64)
    for place in range(n):
        joint[tuple(int(i == place) for i in range(n))] = m
    joint[(0,) * n] = 1 - n * m
    assert joint.argmax() == 0
