"""The losses: a clipped surrogate with three policies kept apart, and imitation. Pure functions over flat token tensors.

behavior sampled the tokens (mu), proximal is the learner when the batch arrived, policy is being optimised (pi).
"""

from __future__ import annotations

from typing import Literal

import torch

from algorithms.ratios import check_flat

LOG_RATIO_BOUND = 20.0  # nats; beyond it a ratio is of no use to anyone, and in float32 not far from overflow


def clipped_surrogate(
    policy_logprobs: torch.Tensor,
    proximal_logprobs: torch.Tensor,
    behavior_weights: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> torch.Tensor:
    """Decoupled PPO: -w min(r A, clip(r, 1 - low, 1 + high) A) a token, with r = pi / pi_proximal.

    w stands for pi_proximal / mu (Hilton et al., arXiv 2110.00641; AReaL, arXiv 2505.24298, equation 5), as one of
    algorithms.corrections gives it. With proximal = behavior and w = 1 it is plain PPO with separate bounds.

    Args:
        policy_logprobs: [N] float32, nats, with gradient.
        proximal_logprobs: [N] float32, nats; taken without gradient.
        behavior_weights: [N] float32, w; taken without gradient.
        advantages: [N] float32, the trajectory's coefficient on each of its tokens.
        clip_low: the ratio's lower bound is 1 - clip_low.
        clip_high: its upper bound is 1 + clip_high.

    Returns:
        [N] float32 losses.

    Raises:
        ValueError: when the shapes disagree.
    """
    check_flat(
        policy_logprobs=policy_logprobs,
        proximal_logprobs=proximal_logprobs,
        behavior_weights=behavior_weights,
        advantages=advantages,
    )
    ratio = torch.exp((policy_logprobs - proximal_logprobs.detach()).clamp(max=LOG_RATIO_BOUND))
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -behavior_weights.detach() * torch.minimum(ratio * advantages, clipped * advantages)


def negative_log_likelihood(policy_logprobs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum up -w log pi: the term that imitates right rethinking (VL-Rethinker, arXiv 2504.08837, section 3.3).

    Args:
        policy_logprobs: [N] float32, nats, with gradient.
        weights: [N] float32, 0 where a token is not to be imitated.

    Returns:
        The sum, a scalar.

    Raises:
        ValueError: when the shapes disagree.
    """
    check_flat(policy_logprobs=policy_logprobs, weights=weights)
    chosen = weights != 0  # a log-prob of minus infinity elsewhere must not make it NaN
    return -(weights[chosen] * policy_logprobs[chosen]).sum()


def imitation_weights(
    correct: torch.Tensor, rewards: torch.Tensor, y1_rewards: torch.Tensor, *, factor: Literal["none", "gain"]
) -> torch.Tensor:
    """How much each trajectory is imitated, before the weight and the normaliser of the whole term.

    A trajectory that was not made to go on, or whose final answer is wrong, is not. ``gain`` multiplies by r(y2) - r(y1), what going on
    was good for.

    Args:
        correct: [S] bool, of the final answer.
        rewards: [S] float32.
        y1_rewards: [S] float32, of y1 alone; NaN: nothing was forced.
        factor: which of the two.

    Returns:
        [S] float32, at least 0.

    Raises:
        ValueError: when the shapes disagree or the factor is unknown.
    """
    check_flat(correct=correct, rewards=rewards, y1_rewards=y1_rewards)
    if factor not in ("none", "gain"):
        raise ValueError(f"unknown NLL factor {factor!r}: none or gain")
    values = (rewards - y1_rewards).clamp(min=0.0) if factor == "gain" else torch.ones_like(rewards)
    return torch.where(correct & ~y1_rewards.isnan(), values, 0.0)


def sequence_weights(
    lengths: torch.Tensor,
    *,
    aggregation: Literal["token_mean", "sequence_mean", "dr_grpo"],
    total_tokens: float,
    total_sequences: float,
    max_response_tokens: int,
) -> torch.Tensor:
    """What each trajectory's summed token loss is multiplied by, so that the batch's loss is their plain sum.

    ``token_mean`` is 1 / tokens of the whole batch, ``sequence_mean`` 1 / (sequences * own length), ``dr_grpo`` the constant
    1 / (sequences * max_response_tokens) (arXiv 2503.20783). Totals are those of all ranks and micro-batches, so that
    the result doesn't depend on how the batch is cut.

    Args:
        lengths: [S] trained tokens of each trajectory.
        aggregation: which mean.
        total_tokens: trained tokens of the whole batch.
        total_sequences: trajectories of the whole batch.
        max_response_tokens: the constant of dr_grpo.

    Returns:
        [S] float32.

    Raises:
        ValueError: for an unknown aggregation.
    """
    lengths = lengths.float()
    if aggregation == "token_mean":
        return torch.full_like(lengths, 1.0 / max(total_tokens, 1.0))
    if aggregation == "sequence_mean":
        return 1.0 / (max(total_sequences, 1.0) * lengths.clamp(min=1.0))
    if aggregation == "dr_grpo":
        return torch.full_like(lengths, 1.0 / (max(total_sequences, 1.0) * max_response_tokens))
    raise ValueError(f"unknown loss aggregation {aggregation!r}: token_mean, sequence_mean or dr_grpo")


def loss_coefficients(
    advantages: torch.Tensor,
    probabilities: torch.Tensor,
    table_sizes: torch.Tensor,
    *,
    weight: Literal["advantage", "sign", "corrected"],
    importance_exponent: float,
) -> torch.Tensor:
    """What takes the advantage's place in the loss of a trajectory that was drawn by |A|^alpha.

    The paper trains on the advantage itself (``advantage``), which with alpha = 1 squares the weighting by |A|; ``sign``
    leaves the weighting to the draw alone; ``corrected`` multiplies by (1 / (N P))^beta (prioritised experience
    replay, arXiv 1511.05952, section 3.4), which at beta = 1 undoes the draw.

    Args:
        advantages: [S] float32.
        probabilities: [S] of each draw, in (0, 1].
        table_sizes: [S] items each was drawn among.
        weight: which of the three.
        importance_exponent: beta, used by ``corrected``.

    Returns:
        [S] float32.

    Raises:
        ValueError: when the shapes disagree or the weight is unknown.
    """
    check_flat(advantages=advantages, probabilities=probabilities, table_sizes=table_sizes)
    if weight == "advantage":
        return advantages
    if weight == "sign":
        return advantages.sign()
    if weight == "corrected":
        correction = (table_sizes.double() * probabilities.double()) ** -importance_exponent
        return (advantages.double() * correction).float()
    raise ValueError(f"unknown loss weight {weight!r}: advantage, sign or corrected")
