"""What one step does to the region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Decision:
    """What a step does to the region; every mask is bool `[batch, region]`.

    Attributes:
        commit: Masked positions to commit. The engine keeps those that are eligible.
        tokens: `[batch, region]` ids to write instead of the candidates. Ids that may never be committed are
            replaced by the candidate.
        overwrite: Committed targets to write anew, with `tokens`.
        remask: Committed targets to mask again; where a target is in both, this one holds.
        finish: Bool `[batch]`, rows to end now; their open targets become padding.
    """

    commit: Tensor
    tokens: Tensor | None = None
    overwrite: Tensor | None = None
    remask: Tensor | None = None
    finish: Tensor | None = None
