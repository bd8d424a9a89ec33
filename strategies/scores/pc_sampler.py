"""Position-aware, calibrated confidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from dllm_sampling import ConfigurationError, DecodingState, ModelFacts, Observation, Score, Source


class PCSampler(Score):
    """Confidence calibrated against common tokens, with the start of the region favoured.

    A confident frequent token (a comma) says less than a confident rare one. `dllm-sampling
    frequencies` makes the table from any text or task. The published sampler is `fixed_k` with this
    score.
    """

    name: ClassVar[str] = "pc_sampler"
    rule: ClassVar[str] = (
        "s_j = exp(-lambda j) min(-c_j ln f(x_j), alpha), j counted from the region's start and f the\n"
        "background frequency of the candidate; unseen tokens count as seen once. lambda is `decay`."
    )
    sources: ClassVar[tuple[Source, ...]] = (Source("PC-Sampler", "and its code", arxiv="2508.13021"),)
    needs: ClassVar[tuple[str, ...]] = ("confidences and candidates", "a file of token counts")
    frequencies: Path = Field(description="The table of token counts that `dllm-sampling frequencies` makes.")
    decay: float = Field(0.25, ge=0, description="How fast positions lose weight; lambda in the paper.")
    alpha: float = Field(10.0, gt=0, description="Largest calibrated score.")

    @field_validator("frequencies")
    @classmethod
    def _readable(cls, path: Path) -> Path:
        read_frequencies(path)
        return path

    def begin(self, state: DecodingState, facts: ModelFacts) -> None:
        total, counts = read_frequencies(self.frequencies)
        table = torch.full((facts.vocab_size,), 1 / total)
        for token, count in counts.items():
            if not 0 <= token < facts.vocab_size:
                raise ConfigurationError(
                    f"frequencies={str(self.frequencies)!r} holds token {token}; the model's vocabulary "
                    f"has {facts.vocab_size}: it was made with another tokenizer."
                )
            table[token] = count / total
        state.shared(self)["surprise"] = -(table + 1e-9).log().to(facts.device)

    def score(self, state: DecodingState, observation: Observation) -> Tensor:
        surprise: Tensor = state.shared(self)["surprise"][observation.tokens]
        calibrated = (observation.log_confidence.exp() * surprise).clamp_max(self.alpha)
        place = observation.positions.columns - observation.positions.first(state.length)
        return calibrated * (-self.decay * place).exp()


def read_frequencies(path: Path) -> tuple[int, dict[int, int]]:
    """Tokens counted in all, and how often each was.

    The file is JSON: {"num_token": n, "p_baseline_dict": {id: count}}.
    """
    shown = f"frequencies={str(path)!r}"
    makes = "`dllm-sampling frequencies` makes one"
    try:
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{shown} is no file; {makes}.")
        table = json.loads(path.read_text(encoding="utf-8"))
        total, counts = int(table["num_token"]), {int(k): int(v) for k, v in table["p_baseline_dict"].items()}
    except OSError as error:
        raise ConfigurationError(f"{shown}: {error.strerror or error}; {makes}.") from None
    except ConfigurationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ConfigurationError(f"{shown} is no table of token counts; {makes}.") from None
    if total < 1 or not all(0 <= count <= total for count in counts.values()):
        raise ConfigurationError(
            f"{shown} counts {total} tokens in all, which its entries do not fit; {makes}."
        )
    return total, counts
