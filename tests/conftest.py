from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

# The models here are tiny: threads cost more than they give, and a second test process would starve.
torch.set_num_threads(1)

settings.register_profile(
    "suite", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
