from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, Phase, settings

# The models here are tiny: threads cost more than they give, and a second test process would starve.
torch.set_num_threads(1)

# What lands must not depend on luck: CI draws the same examples every time, everybody else new ones.
settings.register_profile(
    "suite",
    deadline=None,
    max_examples=60,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
# For `tests/mutants.py`: the same examples every time, and no time spent on making a failing one smaller.
settings.register_profile(
    "mutants",
    settings.get_profile("suite"),
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("suite")
