"""Ratio statistics against values computed by hand; additivity."""

import math

import torch

from algorithms.ratios import RatioSums, ratio_statistics

BOUNDS = {"clip_low": 0.2, "clip_high": 0.35}


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log().float()


def test_metrics_of_two_tokens():
    # pi/mu = 2 and 1; pi/prox = 1 and 0.5 (clipped); prox/mu = 2 and 2
    metrics = ratio_statistics(logs(0.4, 0.2), logs(0.4, 0.4), logs(0.2, 0.2), **BOUNDS).metrics()
    assert math.isclose(metrics["ratio/mean"], 1.5, rel_tol=1e-6)
    assert math.isclose(metrics["ratio/ess"], (2 + 1) ** 2 / (2 * (4 + 1)), rel_tol=1e-6)
    assert metrics["ratio/clip_fraction"] == 0.5
    assert math.isclose(metrics["kl/behavior_proximal"], 2 - 1 - math.log(2), rel_tol=1e-6)


def test_on_policy_is_all_ones_and_zeros():
    policy = logs(0.1, 0.7, 0.3)
    assert ratio_statistics(policy, policy, policy, **BOUNDS).metrics() == {
        "ratio/mean": 1.0,
        "ratio/ess": 1.0,
        "ratio/clip_fraction": 0.0,
        "kl/behavior_proximal": 0.0,
    }


def test_sums_add_over_micro_batches():
    a, b, c = logs(0.4, 0.2, 0.9), logs(0.4, 0.4, 0.5), logs(0.2, 0.2, 0.6)
    whole = ratio_statistics(a, b, c, **BOUNDS)
    parts = ratio_statistics(a[:1], b[:1], c[:1], **BOUNDS) + ratio_statistics(a[1:], b[1:], c[1:], **BOUNDS)
    assert all(math.isclose(whole.metrics()[k], parts.metrics()[k], rel_tol=1e-12) for k in whole.metrics())


def test_no_tokens_no_metrics():
    assert RatioSums().metrics() == {}
