from __future__ import annotations

import torch

# The models here are tiny: threads cost more than they give, and a second test process would starve.
torch.set_num_threads(1)
