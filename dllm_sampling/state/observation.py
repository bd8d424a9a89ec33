"""What one forward shows of the region, each score computed when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dllm_sampling.errors import no_attribute
from dllm_sampling.state import confidence, noise
from dllm_sampling.state.positions import Positions
from dllm_sampling.state.sampling import Sampling

if TYPE_CHECKING:
    from dllm_sampling.state.decoding_state import DecodingState
    from dllm_sampling.state.region import Region


@dataclass(frozen=True, eq=False)
class Observation:
    """What one forward shows of the region: an entry for each of its positions.

    Scores are computed when first asked for, and kept.

    Attributes:
        state: The state of the run.
        sampling: How candidates are drawn, and which probability is their confidence.
        logits: `[batch, region, vocabulary]` float32; entry i predicts position i, for every family.
        positions: Those of the region.
        blocks: `[batch, region]`, the block of each position.
        fresh: Bool `[batch, region]`, predicted by this forward. What is not fresh is not to be read.
        masked: Bool `[batch, region]`, open targets.
        committed: Bool `[batch, region]`, fresh targets that are committed: they may be overwritten or masked
            again.
        eligible: Bool `[batch, region]`, fresh open targets that may be committed now.
        branches: Logits of further canvases by name, shaped as `logits`: see the hook `canvases`.
        forbidden: Bool `[batch, region]`, open targets that not even the engine may commit; None for none.
        forbidden_by: Who forbids which of them.
    """

    state: DecodingState
    sampling: Sampling
    logits: Tensor
    positions: Positions
    blocks: Tensor
    fresh: Tensor
    masked: Tensor
    committed: Tensor
    eligible: Tensor
    branches: Mapping[str, Tensor] = field(default_factory=dict)
    forbidden: Tensor | None = None
    forbidden_by: tuple[tuple[str, Tensor], ...] = ()

    @classmethod
    def of(
        cls,
        state: DecodingState,
        region: Region,
        sampling: Sampling,
        logits: Tensor,
        fresh: Tensor | None,
        branches: Mapping[str, Tensor] | None = None,
    ) -> Observation:
        """What logits show of the region.

        Args:
            state: The state of the run.
            region: The positions.
            sampling: How candidates are drawn.
            logits: `[batch, region, vocabulary]`.
            fresh: Bool `[batch, region]`, which of them this forward predicted; None means all.
            branches: Logits of further canvases by name, shaped as `logits`.

        Returns:
            The observation.
        """
        masked = region.positions.gather(state.masked, fill=False)
        targets = region.positions.gather(state.targets, fill=False)
        fresh = torch.ones_like(masked) if fresh is None else fresh
        return cls(
            state=state,
            sampling=sampling,
            logits=logits.float().contiguous(),
            positions=region.positions,
            blocks=region.blocks,
            fresh=fresh,
            masked=masked,
            committed=targets & ~masked & fresh,
            eligible=masked & fresh,
            branches={name: values.float() for name, values in (branches or {}).items()},
        )

    def with_logits(self, logits: Tensor) -> Observation:
        """The same observation with other logits; scores are computed anew.

        Args:
            logits: `[batch, region, vocabulary]`.

        Returns:
            A new observation.
        """
        return replace(self, logits=logits.contiguous())

    def restricted(self, allowed: Tensor) -> Observation:
        """The same observation with fewer eligible positions; scores already computed are kept.

        Args:
            allowed: Bool `[batch, region]`.

        Returns:
            A new observation.
        """
        return self._with(eligible=self.eligible & allowed)

    def without(self, who: str, forbidden: Tensor) -> Observation:
        """The same observation without positions that a policy forbids; scores already computed are kept.

        Args:
            who: The policy.
            forbidden: Bool `[batch, region]`.

        Returns:
            A new observation.
        """
        return self._with(
            eligible=self.eligible & ~forbidden,
            forbidden=forbidden if self.forbidden is None else self.forbidden | forbidden,
            forbidden_by=(*self.forbidden_by, (who, forbidden)),
        )

    def _with(self, **changes: Any) -> Observation:
        narrowed = replace(self, **changes)
        for name in _SCORES & vars(self).keys():
            vars(narrowed)[name] = vars(self)[name]
        return narrowed

    @cached_property
    def tokens(self) -> Tensor:
        """The candidate of each position, `[batch, region]`: the most likely or a sampled token."""
        if self.sampling.temperature == 0:
            return confidence.best_of(self._scored, self.state.facts.banned)
        keys = self.state.noise_keys(self.positions, "tokens")
        noisy = self._filtered + noise.gumbel(keys, self._filtered.shape[-1])
        return noisy.index_fill_(-1, self.state.facts.banned, -torch.inf).argmax(-1)

    @cached_property
    def log_confidence(self) -> Tensor:
        """log probability of the candidate, `[batch, region]` float32."""
        if self.sampling.temperature == 0:
            return confidence.log_confidence_of_best(self._scored, self.tokens, self.state.facts.banned)
        return confidence.log_probability(self._scored, self.tokens)

    @cached_property
    def margin(self) -> Tensor:
        """The gap between the two largest probabilities, `[batch, region]`."""
        return confidence.margin(self._scored)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the prediction in nats, `[batch, region]`."""
        return confidence.entropy(self._scored)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """The log probability of any tokens, such as those committed before.

        Args:
            tokens: `[batch, region]` ids.

        Returns:
            `[batch, region]` float32.
        """
        return confidence.log_probability(self._scored, tokens)

    def log_confidence_of(self, tokens: Tensor) -> Tensor:
        """As `log_prob`, with the candidate's own precision where the tokens are the candidates.

        Args:
            tokens: `[batch, region]` ids.

        Returns:
            `[batch, region]` float32.
        """
        return self.log_confidence if tokens is self.tokens else self.log_prob(tokens)

    @cached_property
    def _filtered(self) -> Tensor:
        s = self.sampling
        return confidence.filtered(self.logits, s.temperature, s.top_p, s.top_k)

    @property
    def _scored(self) -> Tensor:
        return self._filtered if self.sampling.confidence == "filtered" else self.logits


_SCORES = {"tokens", "log_confidence", "margin", "entropy", "_filtered"}
