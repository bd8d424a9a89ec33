"""How candidates are drawn, and which probability counts as their confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from dllm_sampling.inputs.settings import Settings

if TYPE_CHECKING:
    pass


class Sampling(Settings):
    """How candidates are drawn, and which probability counts as their confidence."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    temperature: float = Field(0.0, ge=0)
    """0 takes the most likely token; above 0 samples."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set this probable."""
    top_k: int | None = Field(None, ge=1)
    """Sample from the k most likely tokens."""
    confidence: Literal["plain", "filtered"] = "plain"
    """plain: the model's own probability (LLaDA); filtered: after temperature, top-p and top-k (Dream)."""

    @model_validator(mode="after")
    def _filters_have_an_effect(self) -> Self:
        # The most likely token stays in every nucleus: at temperature 0 only filtered confidences change.
        if self.temperature == 0 and self.confidence == "plain":
            for name, value, neutral in (("top_p", self.top_p, 1.0), ("top_k", self.top_k, None)):
                if value != neutral:
                    raise ValueError(
                        f"{name}={value!r} has no effect at temperature 0: give a temperature above 0, "
                        "confidence='filtered', or leave it out"
                    )
        return self
