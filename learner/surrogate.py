"""The policy loss of a micro-batch, put together from algorithms/ as the configuration says.

Owns which proximal policy, weight and mask a run uses. Must not know the engine, or how micro-batches are cut.
"""

from __future__ import annotations

import math

import torch

from algorithms.corrections import interpolated_proximal, proximal_fractions, sequence_mask, tapered_weights, truncated_weights
from algorithms.losses import clipped_surrogate
from algorithms.ratios import RatioSums, ratio_statistics
from conf.schema import AlgorithmConfig, BehaviorWeight, ProximalKind
from learner.collate import MicroBatch


class PolicySurrogate:
    """The clipped surrogate with a run's corrections.

    Args:
        algorithm: of the run.
    """

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self._algorithm = algorithm
        self._clip = {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}

    @property
    def needs_recomputation(self) -> bool:
        """Whether a step of several updates needs a forward pass for the proximal policy before the first of them.

        A step of one update never does: while its gradient is computed the policy *is* the proximal policy.
        """
        return self._algorithm.updates_per_step > 1 and self._algorithm.proximal is ProximalKind.recompute

    def loss(
        self, batch: MicroBatch, policy_logprobs: torch.Tensor, recomputed: torch.Tensor | None, *, version: int, update: int
    ) -> tuple[torch.Tensor, RatioSums]:
        """Compute the micro-batch's share of the loss.

        Args:
            batch: with whole trajectories, N tokens.
            policy_logprobs: [N] float32, nats, with gradient.
            recomputed: [N] float32, nats, under the weights that the batch met; None: not recomputed.
            version: of those weights.
            update: optimizer updates taken since.

        Returns:
            The loss, a scalar with gradient, and the sums of its ratio metrics.
        """
        behavior, gaps = batch.behavior_logprobs, version - batch.versions
        proximal = self._proximal(policy_logprobs.detach(), behavior, recomputed, gaps, update)
        weights = self._weights(proximal, batch)
        kept = self._kept(policy_logprobs.detach(), batch)
        statistics = ratio_statistics(policy_logprobs, proximal, behavior, weights, batch.samples, kept, gaps, **self._clip)
        losses = clipped_surrogate(policy_logprobs, proximal, weights, batch.coefficients, **self._clip)
        return (batch.weights * torch.where(kept, losses, 0.0)).sum(), statistics

    def _proximal(
        self, policy: torch.Tensor, behavior: torch.Tensor, recomputed: torch.Tensor | None, gaps: torch.Tensor, update: int
    ) -> torch.Tensor:
        kind = self._algorithm.proximal
        if kind is ProximalKind.behavior:
            return behavior
        if kind is ProximalKind.interpolate:
            fractions = proximal_fractions(gaps, updates_per_version=self._algorithm.updates_per_step, update=update)
            return interpolated_proximal(policy, behavior, fractions)
        return policy if recomputed is None else recomputed

    def _weights(self, proximal: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        kind = self._algorithm.behavior_weight
        if kind is BehaviorWeight.none:
            return torch.ones_like(proximal)
        if kind is BehaviorWeight.tapered:
            return tapered_weights(proximal, batch.behavior_logprobs, batch.coefficients, batch.samples)
        return truncated_weights(proximal, batch.behavior_logprobs, cap=self._algorithm.behavior_ratio_cap)

    def _kept(self, policy: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        low, high = self._algorithm.sequence_ratio_low, self._algorithm.sequence_ratio_high
        bounds = {"low": 0.0 if low is None else low, "high": math.inf if high is None else high}
        return sequence_mask(policy, batch.behavior_logprobs, batch.samples, **bounds)
