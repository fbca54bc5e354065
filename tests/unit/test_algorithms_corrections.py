"""The corrections against values computed by hand; their limits."""

import math

import pytest
import torch

from algorithms.corrections import interpolated_proximal, proximal_fractions, sequence_mask, tapered_weights, truncated_weights

TRAJECTORIES = torch.tensor([4, 4, 9])


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values).log()


def test_fractions_count_optimizer_updates():
    gaps = torch.tensor([0, 1, 2, 8])
    # U = 1, u = 1: d / (d + 1), A-3PO's 1 - 1 / (d + 1)
    torch.testing.assert_close(proximal_fractions(gaps, updates_per_version=1, update=1), torch.tensor([0.0, 1 / 2, 2 / 3, 8 / 9]))
    # U = 4, u = 3: 4 d / (4 d + 3)
    torch.testing.assert_close(proximal_fractions(gaps, updates_per_version=4, update=3), torch.tensor([0.0, 4 / 7, 8 / 11, 32 / 35]))


def test_before_the_first_update_the_proximal_policy_is_the_policy():
    assert proximal_fractions(torch.tensor([0, 5]), updates_per_version=2, update=0).tolist() == [1.0, 1.0]


def test_fractions_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="3 versions newer"):
        proximal_fractions(torch.tensor([1, -3]), updates_per_version=1, update=0)
    with pytest.raises(ValueError, match="got 0 and 1"):
        proximal_fractions(torch.tensor([1]), updates_per_version=0, update=1)


def test_interpolation_is_geometric_and_ends_at_both_policies():
    policy, behavior = logs(0.8, 0.8, 0.8), logs(0.2, 0.2, 0.2)
    # half the way: sqrt(0.2 * 0.8) = 0.4
    found = interpolated_proximal(policy, behavior, torch.tensor([0.0, 0.5, 1.0])).exp()
    torch.testing.assert_close(found, torch.tensor([0.2, 0.4, 0.8]))
    assert not interpolated_proximal(policy.requires_grad_(), behavior, torch.ones(3)).requires_grad


def test_interpolation_is_exact_when_logits_move_evenly():
    """Where each update adds the same to a token's log-prob, the interpolation is the recomputed proximal policy."""
    behavior, drift = logs(0.3, 0.6), torch.tensor([0.05, -0.02])
    gaps, updates_per_version, update = torch.tensor([3, 1]), 2, 1
    proximal = behavior + drift * gaps * updates_per_version
    policy = proximal + drift * update
    fractions = proximal_fractions(gaps, updates_per_version=updates_per_version, update=update)
    torch.testing.assert_close(interpolated_proximal(policy, behavior, fractions), proximal)


def test_truncated_weights():
    # 0.5 / 0.25 = 2; 0.5 / 0.1 = 5, cut at 3; 0.1 / 0.5 = 0.2
    found = truncated_weights(logs(0.5, 0.5, 0.1), logs(0.25, 0.1, 0.5), cap=3.0)
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 0.2]))


def test_truncated_weights_on_policy_are_one_and_never_overflow():
    policy = logs(0.3, 0.7)
    assert truncated_weights(policy, policy, cap=1.0).tolist() == [1.0, 1.0]
    torch.testing.assert_close(truncated_weights(torch.tensor([0.0]), torch.tensor([-500.0]), cap=2.0), torch.tensor([2.0]))
    with pytest.raises(ValueError, match=r"cap of 0.5"):
        truncated_weights(policy, policy, cap=0.5)


def test_the_cap_makes_the_weights_mean_smaller_and_without_it_it_is_one():
    """Under mu the untruncated ratio has the mean 1, whatever pi is: the weights are importance weights."""
    behavior, proximal = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.6, 0.3, 0.1])
    whole = (behavior * truncated_weights(proximal.log(), behavior.log(), cap=1e6)).sum()
    torch.testing.assert_close(whole, torch.tensor(1.0))
    # 0.1 * 2 (of 6) + 0.2 * 1.5 + 0.7 / 7
    torch.testing.assert_close((behavior * truncated_weights(proximal.log(), behavior.log(), cap=2.0)).sum(), torch.tensor(0.6))


def test_tapered_weights_of_bad_trajectories():
    # trajectory 4: (0.5 / 0.8) * (0.5 / 0.5) = 0.625; trajectory 9: 0.6 / 0.3 = 2, at most 1
    found = tapered_weights(logs(0.5, 0.5, 0.6), logs(0.8, 0.5, 0.3), -torch.ones(3), TRAJECTORIES)
    torch.testing.assert_close(found, torch.tensor([0.625, 0.625, 1.0]))


def test_tapered_weights_of_good_trajectories_are_one():
    assert tapered_weights(logs(0.1, 0.9, 0.6), logs(0.9, 0.1, 0.6), torch.ones(3), TRAJECTORIES).tolist() == [1.0, 1.0, 1.0]


def test_what_the_policy_has_unlearnt_is_pushed_no_further():
    """The limit that TOPR is made for: the ratio of a bad trajectory goes to 0, its weight too, in whatever dtype."""
    found = tapered_weights(torch.full((300,), -9.0), torch.full((300,), -0.1), -torch.ones(300), torch.zeros(300, dtype=torch.int64))
    assert found.dtype == torch.float32 and found.max() == 0.0


def test_the_sequence_mask_is_of_the_geometric_mean():
    # trajectory 4: sqrt(4 * 1/4) = 1 though both tokens are far off; trajectory 9: 0.9 / 0.3 = 3
    policy, behavior = logs(0.8, 0.1, 0.9), logs(0.2, 0.4, 0.3)
    assert sequence_mask(policy, behavior, TRAJECTORIES, low=0.5, high=2.0).tolist() == [True, True, False]
    assert sequence_mask(policy, behavior, TRAJECTORIES, low=0.5, high=3.1).tolist() == [True, True, True]
    assert sequence_mask(policy, behavior, TRAJECTORIES, low=1.5, high=3.1).tolist() == [False, False, True]
    assert sequence_mask(policy, behavior, TRAJECTORIES, low=0.0, high=math.inf).all()


@pytest.mark.parametrize("length", [1, 10, 1000])
def test_the_sequence_mask_does_not_depend_on_the_length(length):
    sequences = torch.zeros(length, dtype=torch.int64)
    behavior = torch.full((length,), -1.0)
    assert sequence_mask(behavior + math.log(1.9), behavior, sequences, low=0.5, high=2.0).all()
    assert not sequence_mask(behavior + math.log(2.1), behavior, sequences, low=0.5, high=2.0).any()


def test_the_sequence_mask_lets_what_is_no_number_through_to_the_loss():
    assert sequence_mask(logs(0.5), torch.tensor([math.nan]), torch.zeros(1, dtype=torch.int64), low=0.5, high=2.0).all()


def test_the_sequence_mask_refuses_bounds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        sequence_mask(logs(0.5), logs(0.5), torch.zeros(1, dtype=torch.int64), low=2, high=1)


def test_nothing_to_correct():
    empty, numbers = torch.empty(0), torch.empty(0, dtype=torch.int64)
    assert len(tapered_weights(empty, empty, empty, numbers)) == len(sequence_mask(empty, empty, numbers, low=0.5, high=2.0)) == 0
    assert len(proximal_fractions(numbers, updates_per_version=1, update=1)) == 0


@pytest.mark.parametrize("function", [truncated_weights, interpolated_proximal, tapered_weights, sequence_mask])
def test_shapes_are_named(function):
    two, one = torch.zeros(2), torch.zeros(1)
    arguments = {
        truncated_weights: ((two, one), {"cap": 2.0}),
        interpolated_proximal: ((two, one, two), {}),
        tapered_weights: ((two, one, two, two), {}),
        sequence_mask: ((two, one, two), {"low": 0.5, "high": 2.0}),
    }
    positional, named = arguments[function]
    with pytest.raises(ValueError, match=r"behavior_logprobs.*\(1,\)"):
        function(*positional, **named)
