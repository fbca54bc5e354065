"""Ratio statistics against values computed by hand; additivity."""

import math

import pytest
import torch

from algorithms.ratios import RatioSums, ratio_statistics

BOUNDS = {"clip_low": 0.2, "clip_high": 0.35}


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log().float()


def statistics(policy, proximal, behavior, *, weights=None, sequences=None, kept=None, gaps=None) -> RatioSums:
    """With weights of 1, a trajectory a token, nothing masked, nothing stale, unless said otherwise."""
    number = len(policy)
    return ratio_statistics(
        policy,
        proximal,
        behavior,
        torch.ones(number) if weights is None else weights,
        torch.arange(number) if sequences is None else sequences,
        torch.ones(number, dtype=torch.bool) if kept is None else kept,
        torch.zeros(number, dtype=torch.int64) if gaps is None else gaps,
        **BOUNDS,
    )


def test_metrics_of_two_tokens():
    # pi/mu = 2 and 1; pi/prox = 1 and 0.5 (clipped); prox/mu = 2 and 2
    metrics = statistics(logs(0.4, 0.2), logs(0.4, 0.4), logs(0.2, 0.2)).metrics()
    assert math.isclose(metrics["ratio/mean"], 1.5, rel_tol=1e-6)
    assert math.isclose(metrics["ratio/ess"], (2 + 1) ** 2 / (2 * (4 + 1)), rel_tol=1e-6)
    assert metrics["ratio/clip_fraction"] == 0.5
    assert math.isclose(metrics["kl/behavior_proximal"], 2 - 1 - math.log(2), rel_tol=1e-6)


def test_on_policy_is_all_ones_and_zeros():
    policy = logs(0.1, 0.7, 0.3)
    assert statistics(policy, policy, policy).metrics() == {
        "ratio/mean": 1.0,
        "ratio/ess": 1.0,
        "ratio/clip_fraction": 0.0,
        "kl/behavior_proximal": 0.0,
        "ratio/weight_mean": 1.0,
        "ratio/masked_fraction": 0.0,
        "ratio/masked_length_bias": 0.0,
        "staleness/trained_mean": 0.0,
    }


def test_what_the_corrections_did():
    # trajectory 7 has three tokens and is masked, 9 has one: all had a mean length of 2, what is kept has 1
    policy = logs(0.5, 0.5, 0.5, 0.5)
    metrics = statistics(
        policy,
        policy,
        policy,
        weights=torch.tensor([2.0, 2.0, 2.0, 0.5]),
        sequences=torch.tensor([7, 7, 7, 9]),
        kept=torch.tensor([False, False, False, True]),
        gaps=torch.tensor([2, 2, 1, 0]),
    ).metrics()
    assert metrics["ratio/weight_mean"] == 0.125  # 0.5 of four tokens
    assert metrics["ratio/masked_fraction"] == 0.75
    assert metrics["ratio/masked_length_bias"] == -0.5
    assert metrics["staleness/trained_mean"] == 1.25


def test_a_batch_that_is_masked_whole_has_no_length_left():
    policy = logs(0.5)
    assert statistics(policy, policy, policy, kept=torch.tensor([False])).metrics()["ratio/masked_length_bias"] == -1.0


def test_sums_add_over_micro_batches():
    a, b, c = logs(0.4, 0.2, 0.9), logs(0.4, 0.4, 0.5), logs(0.2, 0.2, 0.6)
    others = {
        "weights": torch.tensor([1.0, 0.5, 2.0]),
        "sequences": torch.tensor([0, 1, 1]),
        "kept": torch.tensor([False, True, True]),
        "gaps": torch.tensor([0, 1, 3]),
    }
    whole = statistics(a, b, c, **others)
    first = statistics(a[:1], b[:1], c[:1], **{name: value[:1] for name, value in others.items()})
    rest = statistics(a[1:], b[1:], c[1:], **{name: value[1:] for name, value in others.items()})
    assert (first + rest).metrics() == pytest.approx(whole.metrics(), rel=1e-12)


def test_no_tokens_no_metrics():
    assert RatioSums().metrics() == {}
