"""Corrections of a batch that other policies sampled: per token, per trajectory. Pure functions over flat token tensors.

behavior sampled the tokens (mu), proximal is the learner when the batch arrived, policy is being optimised (pi). No result has a gradient.
"""

from __future__ import annotations

import math

import torch

from algorithms.ratios import check_flat


def proximal_fractions(version_gaps: torch.Tensor, *, updates_per_version: int, update: int) -> torch.Tensor:
    """How far along the way from mu to pi the proximal policy lies, counted in optimizer updates: a = d U / (d U + u).

    A token that is d versions old was sampled d U updates before the batch arrived, and u updates have been taken since. With u = 1
    this is A-3PO's a = 1 - 1 / n for a total of n updates (arXiv 2512.06547, section 3); for the step's first update it is 1, since
    pi is the proximal policy then, and for tokens of the newest version it is 0, since mu is.

    Args:
        version_gaps: [N] integers >= 0, the learner's version minus the token's.
        updates_per_version: U >= 1, optimizer updates between two versions.
        update: u >= 0, updates taken since the batch arrived.

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: for a negative gap, or counts out of range.
    """
    if updates_per_version < 1 or update < 0:
        raise ValueError(f"need at least one update a version and a count of updates, got {updates_per_version} and {update}")
    if len(version_gaps) and int(version_gaps.min()) < 0:
        raise ValueError(f"a token is {-int(version_gaps.min())} versions newer than the learner")
    if update == 0:
        return torch.ones_like(version_gaps, dtype=torch.float32)
    behind = version_gaps.float() * updates_per_version
    return behind / (behind + update)


def interpolated_proximal(policy_logprobs: torch.Tensor, behavior_logprobs: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """The proximal policy without a forward pass: log mu + a (log pi - log mu) a token (A-3PO, arXiv 2512.06547).

    Args:
        policy_logprobs: [N] float32, nats.
        behavior_logprobs: [N] float32, nats.
        fractions: [N] float32, a; 0 gives mu, 1 gives pi.

    Returns:
        [N] float32, nats.

    Raises:
        ValueError: when the shapes disagree.
    """
    check_flat(policy_logprobs=policy_logprobs, behavior_logprobs=behavior_logprobs, fractions=fractions)
    return torch.lerp(behavior_logprobs, policy_logprobs.detach(), fractions)


def truncated_weights(proximal_logprobs: torch.Tensor, behavior_logprobs: torch.Tensor, *, cap: float) -> torch.Tensor:
    """Truncated importance weights of tokens: w = min(pi_proximal / mu, C).

    The weight of decoupled PPO (arXiv 2110.00641), truncated from above: what it loses in truth for large ratios it saves in
    variance (Ionides, "Truncated importance sampling", 2008; for engine mismatch Yao et al. 2025).

    Args:
        proximal_logprobs: [N] float32, nats.
        behavior_logprobs: [N] float32, nats.
        cap: C >= 1.

    Returns:
        [N] float32 in [0, C].

    Raises:
        ValueError: when the shapes disagree or the cap is below 1.
    """
    check_flat(proximal_logprobs=proximal_logprobs, behavior_logprobs=behavior_logprobs)
    if cap < 1:
        raise ValueError(f"a cap of {cap} would shrink tokens whose ratio is 1, expected at least 1")
    # the bound on the logarithm, so that a huge ratio cannot overflow on the way
    return (proximal_logprobs.detach() - behavior_logprobs).clamp(max=math.log(cap)).exp()


def tapered_weights(
    proximal_logprobs: torch.Tensor, behavior_logprobs: torch.Tensor, coefficients: torch.Tensor, sequences: torch.Tensor
) -> torch.Tensor:
    """Asymmetric weights: 1 for the tokens of good trajectories, clip(pi_proximal / mu, 0, 1) of the whole trajectory for bad ones.

    Good samples are imitated however unlikely they have become; bad ones are pushed down only as far as the policy would still
    sample them, since nothing else bounds the loss from below (TOPR, arXiv 2503.14286, equation 4).

    Args:
        proximal_logprobs: [N] float32, nats.
        behavior_logprobs: [N] float32, nats.
        coefficients: [N] float32, the trajectory's coefficient in the loss; below 0 it is a bad one.
        sequences: [N] integers, the token's trajectory.

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: when the shapes disagree.
    """
    check_flat(proximal_logprobs=proximal_logprobs, behavior_logprobs=behavior_logprobs, coefficients=coefficients, sequences=sequences)
    sums, _, owners = _sequence_sums(proximal_logprobs.detach() - behavior_logprobs, sequences)
    ratios = sums.clamp(max=0.0).exp()[owners].float()
    return torch.where(coefficients < 0, ratios, torch.ones_like(ratios))


def sequence_mask(
    policy_logprobs: torch.Tensor, behavior_logprobs: torch.Tensor, sequences: torch.Tensor, *, low: float, high: float
) -> torch.Tensor:
    """Which tokens belong to trajectories whose geometric-mean ratio (pi / mu)^(1 / R) lies in [low, high].

    The geometric mean doesn't fall or rise with the length, as the plain product does, so long trajectories are not singled out
    (GSPO, arXiv 2507.18071, section 4.1, for the ratio; as a filter verl's rollout correction). A ratio that is no number
    counts as inside: it must end up in the loss and be noticed, not be filtered away.

    Args:
        policy_logprobs: [N] float32, nats.
        behavior_logprobs: [N] float32, nats.
        sequences: [N] integers, the token's trajectory; all tokens of a trajectory are here.
        low: lower bound >= 0.
        high: upper bound >= low.

    Returns:
        [N] bool, False: outside.

    Raises:
        ValueError: when the shapes disagree or the bounds are in the wrong order.
    """
    check_flat(policy_logprobs=policy_logprobs, behavior_logprobs=behavior_logprobs, sequences=sequences)
    if not 0 <= low <= high:
        raise ValueError(f"the bounds of a sequence's ratio are in the wrong order: [{low}, {high}]")
    sums, lengths, owners = _sequence_sums(policy_logprobs.detach() - behavior_logprobs, sequences)
    ratios = (sums / lengths).exp()
    return ~((ratios < low) | (ratios > high))[owners]


def _sequence_sums(values: torch.Tensor, sequences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[S] float64 sums and lengths of the trajectories, and [N] each token's place among them."""
    numbers, owners = torch.unique(sequences, return_inverse=True)
    sums = torch.zeros(len(numbers), dtype=torch.float64, device=values.device).index_add_(0, owners, values.double())
    return sums, torch.bincount(owners, minlength=len(numbers)).double(), owners
