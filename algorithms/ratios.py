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

    def __add__(self, other: RatioSums) -> RatioSums:
        """Sum over two disjoint sets of tokens."""
        return RatioSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def metrics(self) -> dict[str, float]:
        """The step metrics; empty when there were no tokens.

        Returns:
            ``ratio/mean`` and ``ratio/ess`` (effective sample size as a share of the tokens) of pi / mu,
            ``ratio/clip_fraction`` of pi / pi_proximal, ``kl/behavior_proximal`` in nats a token.
        """
        if self.tokens == 0:
            return {}
        return {
            "ratio/mean": self.ratio / self.tokens,
            "ratio/ess": self.ratio**2 / (self.tokens * self.ratio_squared),
            "ratio/clip_fraction": self.clipped / self.tokens,
            "kl/behavior_proximal": self.kl / self.tokens,
        }


def ratio_statistics(
    policy_logprobs: torch.Tensor,
    proximal_logprobs: torch.Tensor,
    behavior_logprobs: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> RatioSums:
    """Sum up the ratios of the three policies over sampled tokens.

    The KL is the k3 estimate exp(d) - 1 - d with d = log pi_proximal - log mu on tokens drawn from mu: unbiased and
    never negative (Schulman, "Approximating KL divergence", 2020).

    Args:
        policy_logprobs: [N] float32, nats.
        proximal_logprobs: [N] float32, nats.
        behavior_logprobs: [N] float32, nats.
        clip_low: the ratio's lower bound is 1 - clip_low.
        clip_high: its upper bound is 1 + clip_high.

    Returns:
        Sums over the N tokens.

    Raises:
        ValueError: when the shapes disagree.
    """
    check_flat(policy_logprobs=policy_logprobs, proximal_logprobs=proximal_logprobs, behavior_logprobs=behavior_logprobs)
    with torch.no_grad():
        policy, proximal, behavior = (x.detach().double() for x in (policy_logprobs, proximal_logprobs, behavior_logprobs))
        total = torch.exp(policy - behavior)
        step = torch.exp(policy - proximal)
        gap = proximal - behavior
        clipped = (step < 1 - clip_low) | (step > 1 + clip_high)
        return RatioSums(
            tokens=float(policy.numel()),
            ratio=float(total.sum()),
            ratio_squared=float((total * total).sum()),
            clipped=float(clipped.sum()),
            kl=float((torch.expm1(gap) - gap).sum()),
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
