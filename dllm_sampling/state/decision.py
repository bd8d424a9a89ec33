"""What one step does to the region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dllm_sampling.errors import PluginError, no_attribute, unknown_name


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

    Raises:
        PluginError: For a field that it does not have, with the nearest that it has.
    """

    commit: Tensor
    tokens: Tensor | None = None
    overwrite: Tensor | None = None
    remask: Tensor | None = None
    finish: Tensor | None = None

    def __new__(cls, *given: Any, **named: Any) -> Decision:
        """Refuse a misspelt field by name; the dataclass sets the others."""
        for name in named:
            if name not in cls.__dataclass_fields__:
                raise PluginError("Decision: " + unknown_name("field", name, cls.__dataclass_fields__))
        return super().__new__(cls)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)
