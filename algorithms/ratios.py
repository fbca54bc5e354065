"""What the importance ratios of a batch look like. Pure functions over flat token tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, kw_only=True)
class RatioSums:
    """Sums over tokens from which the ratio metrics follow; they add over micro-batches and ranks."""

    tokens: float = 0.0
    ratio: float = 0.0  # of pi / mu
    ratio_squared: float = 0.0
    clipped: float = 0.0  # tokens with pi / pi_proximal outside the clip bounds
    kl: float = 0.0  # nats, k3 estimate of KL(mu || pi_proximal)
    weight: float = 0.0  # of the behaviour weights w, masked tokens' 0 included
    version_gap: float = 0.0  # of the learner's version minus the token's
    masked: float = 0.0  # tokens of trajectories outside the bounds of the sequence mask
    sequences: float = 0.0  # trajectories
    masked_sequences: float = 0.0

    def __add__(self, other: RatioSums) -> RatioSums:
        """Sum over two disjoint sets of tokens."""
        return RatioSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def metrics(self) -> dict[str, float]:
        """The step metrics; empty when there were no tokens.

        Returns:
            ``ratio/mean`` and ``ratio/ess`` (effective sample size as a share of the tokens) of pi / mu,
            ``ratio/clip_fraction`` of pi / pi_proximal, ``kl/behavior_proximal`` in nats a token, ``ratio/weight_mean``
            of the weights that the loss used, ``ratio/masked_fraction`` of the tokens, ``ratio/masked_length_bias``: how much
            longer (above 0) or shorter the mean trajectory became by the mask, as a share, and ``staleness/trained_mean``
            in versions a token.
        """
        if self.tokens == 0:
            return {}
        kept = self.sequences - self.masked_sequences
        kept_length = (self.tokens - self.masked) / kept if kept else 0.0
        return {
            "ratio/mean": self.ratio / self.tokens,
            "ratio/ess": self.ratio**2 / (self.tokens * self.ratio_squared),
            "ratio/clip_fraction": self.clipped / self.tokens,
            "kl/behavior_proximal": self.kl / self.tokens,
            "ratio/weight_mean": self.weight / self.tokens,
            "ratio/masked_fraction": self.masked / self.tokens,
            "ratio/masked_length_bias": kept_length * self.sequences / self.tokens - 1.0,
            "staleness/trained_mean": self.version_gap / self.tokens,
        }


def ratio_statistics(
    policy_logprobs: torch.Tensor,
    proximal_logprobs: torch.Tensor,
    behavior_logprobs: torch.Tensor,
    behavior_weights: torch.Tensor,
    sequences: torch.Tensor,
    kept: torch.Tensor,
    version_gaps: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> RatioSums:
    """Sum up the ratios of the three policies, and what the corrections made of them, over sampled tokens.

    The KL is the k3 estimate exp(d) - 1 - d with d = log pi_proximal - log mu on tokens drawn from mu: unbiased and
    never negative (Schulman, "Approximating KL divergence", 2020).

    Args:
        policy_logprobs: [N] float32, nats.
        proximal_logprobs: [N] float32, nats.
        behavior_logprobs: [N] float32, nats.
        behavior_weights: [N] float32, w before the mask.
        sequences: [N] integers, the token's trajectory; all tokens of a trajectory are here.
        kept: [N] bool, False: the sequence mask took the token's trajectory out.
        version_gaps: [N] integers, the learner's version minus the token's.
        clip_low: the ratio's lower bound is 1 - clip_low.
        clip_high: its upper bound is 1 + clip_high.

    Returns:
        Sums over the N tokens.

    Raises:
        ValueError: when the shapes disagree.
    """
    check_flat(
        policy_logprobs=policy_logprobs,
        proximal_logprobs=proximal_logprobs,
        behavior_logprobs=behavior_logprobs,
        behavior_weights=behavior_weights,
        sequences=sequences,
        kept=kept,
        version_gaps=version_gaps,
    )
    with torch.no_grad():
        policy, proximal, behavior = (x.detach().double() for x in (policy_logprobs, proximal_logprobs, behavior_logprobs))
        total = torch.exp(policy - behavior)
        step = torch.exp(policy - proximal)
        gap = proximal - behavior
        clipped = (step < 1 - clip_low) | (step > 1 + clip_high)
        sums = {
            "ratio": total.sum(),
            "ratio_squared": (total * total).sum(),
            "clipped": clipped.sum(),
            "kl": (torch.expm1(gap) - gap).sum(),
            "weight": behavior_weights.detach().double()[kept].sum(),
            "version_gap": version_gaps.sum(),
            "masked": (~kept).sum(),
        }
        values = torch.stack([value.double() for value in sums.values()]).tolist()  # one wait for the device
        return RatioSums(
            **dict(zip(sums, values, strict=True)),
            tokens=float(policy.numel()),
            sequences=float(len(sequences.unique())),
            masked_sequences=float(len(sequences[~kept].unique())),
        )


def check_flat(**tensors: torch.Tensor) -> None:
    """Refuse tensors that are not one-dimensional and of one length.

    Args:
        tensors: by the name the message shall use.

    Raises:
        ValueError: naming every shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"need flat tensors of one length, got {shapes}")
