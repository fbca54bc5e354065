"""The learning rate as a pure function of the optimizer step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, num_steps: int, warmup_fraction: float, min_ratio: float) -> float:
    """Linear warm-up to the peak, then a cosine down to a share of it.

    Args:
        step: optimizer step, from 0; steps past the end keep the final rate.
        peak: the rate after warm-up.
        num_steps: optimizer steps of the whole run.
        warmup_fraction: share of num_steps spent warming up, in [0, 1).
        min_ratio: the final rate as a share of the peak, in [0, 1].

    Returns:
        The rate of that step; the first warm-up step already moves.

    Raises:
        ValueError: when a number is out of its range.
    """
    if step < 0 or num_steps < 1:
        raise ValueError(f"need step >= 0 and num_steps >= 1, got step {step} and num_steps {num_steps}")
    if not 0 <= warmup_fraction < 1 or not 0 <= min_ratio <= 1:
        raise ValueError(f"need warmup_fraction in [0, 1) and min_ratio in [0, 1], got {warmup_fraction} and {min_ratio}")
    warmup = round(warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(num_steps - 1 - warmup, 1), 1.0)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
