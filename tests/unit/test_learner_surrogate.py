"""The loss of a micro-batch as the configuration chooses it, by hand: two trajectories, the first over two versions."""

import dataclasses
import math

import pytest
import torch

from conf.schema import AlgorithmConfig, BehaviorWeight, ProximalKind
from learner.collate import MicroBatch
from learner.surrogate import PolicySurrogate

BEHAVIOR = [0.2, 0.5, 0.4]
POLICY = [0.8, 0.5, 0.2]
WEIGHT = 0.25  # of every token


def make_batch(coefficients=(1.0, 1.0, -1.0), behavior=BEHAVIOR, versions=(1, 2, 3)) -> MicroBatch:
    """Tokens 0 and 1 are of trajectory 0, token 2 of trajectory 1; what only the model reads is left empty."""
    none = torch.empty(0, dtype=torch.int64)
    number = len(behavior)
    fields = dict.fromkeys((field.name for field in dataclasses.fields(MicroBatch)), none)
    fields |= {
        "max_responses": 1,
        "pixel_values": None,
        "image_grid_thw": None,
        "samples": torch.tensor([0, 0, 1]),
        "behavior_logprobs": torch.tensor(behavior).log(),
        "versions": torch.tensor(versions),
        "coefficients": torch.tensor(coefficients),
        "weights": torch.full((number,), WEIGHT),
    }
    return MicroBatch(**fields)


def loss_of(batch: MicroBatch | None = None, *, recomputed=None, version: int = 3, update: int = 0, policy=POLICY, **algorithm):
    algorithm = {"sequence_ratio_low": None, "sequence_ratio_high": None, "clip_low": 1.0, "clip_high": 100.0, **algorithm}
    logprobs = torch.tensor(policy).log().requires_grad_()
    old = None if recomputed is None else torch.tensor(recomputed).log()
    surrogate = PolicySurrogate(AlgorithmConfig(**algorithm))
    loss, sums = surrogate.loss(batch or make_batch(), logprobs, old, version=version, update=update)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.tolist(), sums.metrics()


def test_one_update_is_reinforce_with_truncated_weights():
    # ratios pi / mu = 4 (cut at 2), 1, 0.5; pi / proximal = 1
    loss, gradient, metrics = loss_of()
    assert loss == pytest.approx(-WEIGHT * (2.0 + 1.0 - 0.5))
    assert gradient == pytest.approx([-WEIGHT * 2.0, -WEIGHT, WEIGHT * 0.5])
    assert metrics["ratio/weight_mean"] == pytest.approx(3.5 / 3)
    assert metrics["staleness/trained_mean"] == pytest.approx((2 + 1 + 0) / 3)


def test_a_recomputed_proximal_policy():
    # proximal / mu = 2, 0.8, 1 and pi / proximal = 2, 1.25, 0.5
    loss, _, metrics = loss_of(recomputed=[0.4, 0.4, 0.4], update=1, updates_per_step=2)
    assert loss == pytest.approx(-WEIGHT * (2.0 * 2.0 + 0.8 * 1.25 - 1.0 * 0.5))
    assert metrics["kl/behavior_proximal"] == pytest.approx((2 - 1 - math.log(2) + 0.8 - 1 - math.log(0.8)) / 3, rel=1e-5)


def test_an_interpolated_proximal_policy_follows_each_token_s_version():
    # U = 2, u = 1: a = 4/5 of two versions, 2/3 of one, 0 of none; behaviour weight (pi / mu)^a, ratio (pi / mu)^(1 - a)
    loss, _, _ = loss_of(update=1, updates_per_step=2, proximal=ProximalKind.interpolate)
    weights, ratios = [min(4.0**0.8, 2.0), 1.0, 1.0], [4.0**0.2, 1.0, 0.5]
    assert loss == pytest.approx(-WEIGHT * (weights[0] * ratios[0] + 1.0 - weights[2] * ratios[2]), rel=1e-5)


def test_an_interpolated_proximal_policy_is_the_policy_in_a_step_s_first_update():
    assert loss_of(proximal=ProximalKind.interpolate) == loss_of(proximal=ProximalKind.recompute)


def test_the_behaviour_policy_as_proximal_is_plain_ppo():
    # all of pi / mu is in the clipped ratio: 4 is cut at 1.35, 0.5 of a bad token at 0.8, and neither has a gradient
    loss, gradient, _ = loss_of(proximal=ProximalKind.behavior, clip_low=0.2, clip_high=0.35)
    assert loss == pytest.approx(-WEIGHT * (1.35 + 1.0 - 0.8))
    assert gradient == pytest.approx([0.0, -WEIGHT, 0.0])


def test_tapered_weights_tell_good_from_bad():
    _, gradient, _ = loss_of(behavior_weight=BehaviorWeight.tapered)
    assert gradient == pytest.approx([-WEIGHT, -WEIGHT, WEIGHT * 0.5])  # 1 for the good one, 0.2 / 0.4 for the bad one
    _, gradient, _ = loss_of(make_batch(coefficients=(-1.0, -1.0, 1.0)), behavior_weight=BehaviorWeight.tapered)
    assert gradient == pytest.approx([WEIGHT, WEIGHT, -WEIGHT])  # 4 * 1, at most 1


def test_without_a_weight_stale_tokens_count_like_fresh_ones():
    _, gradient, _ = loss_of(behavior_weight=BehaviorWeight.none)
    assert gradient == pytest.approx([-WEIGHT, -WEIGHT, WEIGHT])


@pytest.mark.parametrize("proximal", list(ProximalKind))
def test_the_mask_takes_whole_trajectories_out(proximal: ProximalKind):
    # geometric means: sqrt(4 * 1) = 2 and 0.5
    _, gradient, metrics = loss_of(sequence_ratio_high=1.9, proximal=proximal)
    assert gradient[:2] == [0.0, 0.0] and gradient[2] > 0
    assert metrics["ratio/masked_fraction"] == pytest.approx(2 / 3)
    assert metrics["ratio/masked_length_bias"] == pytest.approx(1 / 1.5 - 1)
    _, gradient, metrics = loss_of(sequence_ratio_low=0.6, proximal=proximal)
    assert gradient[2] == 0.0 and gradient[0] < 0
    assert metrics["ratio/masked_fraction"] == pytest.approx(1 / 3)


def test_a_masked_trajectory_cannot_spoil_the_loss_by_its_size():
    batch = make_batch(coefficients=(1.0, 1.0, -1.0), behavior=[0.2, 0.5, 1e-38])
    loss, gradient, _ = loss_of(batch, policy=[0.2, 0.5, 0.9], proximal=ProximalKind.behavior, sequence_ratio_high=2.0)
    assert loss == pytest.approx(-WEIGHT * 2.0)
    assert gradient == pytest.approx([-WEIGHT, -WEIGHT, 0.0])


def test_on_policy_no_correction_changes_anything():
    """Every proximal policy, weight and mask gives the same loss and gradient when the learner itself sampled the batch."""
    batch = make_batch(versions=(3, 3, 3))
    expected = None
    for proximal in ProximalKind:
        for weight in BehaviorWeight:
            settings = {"proximal": proximal, "behavior_weight": weight, "sequence_ratio_low": 0.5, "sequence_ratio_high": 2.0}
            loss, gradient, metrics = loss_of(batch, policy=BEHAVIOR, **settings)
            expected = expected or (loss, gradient)
            assert (loss, gradient) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
            assert metrics["ratio/masked_fraction"] == 0.0 and metrics["ratio/ess"] == pytest.approx(1.0)


def test_a_forward_pass_is_asked_for_only_where_it_is_needed():
    def needs(**algorithm) -> bool:
        return PolicySurrogate(AlgorithmConfig(**algorithm)).needs_recomputation

    assert needs(updates_per_step=2)
    assert not needs(updates_per_step=1)
    assert not needs(updates_per_step=2, proximal=ProximalKind.interpolate)
    assert not needs(updates_per_step=2, proximal=ProximalKind.behavior)
