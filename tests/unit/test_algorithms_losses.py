"""The surrogate, its weights and coefficients against values computed by hand; equivalences and limits."""

import math

import pytest
import torch

from algorithms.corrections import truncated_weights
from algorithms.losses import clipped_surrogate, loss_coefficients, sequence_weights

SETTINGS = {"clip_low": 0.2, "clip_high": 0.35}


ONE = torch.ones(1)


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values).log()


def test_ratio_inside_the_bounds_is_unclipped():
    # r = 0.6 / 0.5 = 1.2, w = 1, A = 2 -> -2.4
    loss = clipped_surrogate(logs(0.6), logs(0.5), ONE, torch.tensor([2.0]), **SETTINGS)
    torch.testing.assert_close(loss, torch.tensor([-2.4]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (2.0, 1.0, -1.35),  # a good token is pushed up to 1.35 only
        (0.5, 1.0, -0.5),  # below the bound a good token keeps its gradient
        (0.5, -1.0, 0.8),  # a bad token is pushed down to 0.8 only
        (2.0, -1.0, 2.0),  # above the bound a bad token keeps its gradient
    ],
)
def test_the_pessimistic_bound(ratio, advantage, expected):
    loss = clipped_surrogate(logs(0.25 * ratio), logs(0.25), ONE, torch.tensor([advantage]), **SETTINGS)
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_clipped_tokens_have_no_gradient():
    policy = logs(0.8, 0.3).requires_grad_()
    clipped_surrogate(policy, logs(0.4, 0.4), torch.ones(2), torch.tensor([1.0, -1.0]), **SETTINGS).sum().backward()
    assert policy.grad is not None and policy.grad.tolist() == [0.0, 0.0]


def test_the_weight_multiplies_and_neither_it_nor_the_proximal_policy_has_a_gradient():
    # w = 2, r = 1, A = 1; d/dlog pi of -w r A = -2
    policy, proximal, weight = logs(0.8).requires_grad_(), logs(0.8).requires_grad_(), torch.tensor([2.0], requires_grad=True)
    loss = clipped_surrogate(policy, proximal, weight, ONE, **SETTINGS)
    torch.testing.assert_close(loss.detach(), torch.tensor([-2.0]))
    loss.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([-2.0]))
    assert proximal.grad is None and weight.grad is None


def test_on_policy_gradient_is_reinforce():
    policy = logs(0.3, 0.6).requires_grad_()
    advantages = torch.tensor([0.75, -0.25])
    clipped_surrogate(policy, policy.detach(), torch.ones(2), advantages, **SETTINGS).sum().backward()
    torch.testing.assert_close(policy.grad, -advantages)


def test_proximal_equal_behavior_is_plain_ppo():
    policy, behavior, advantages = logs(0.5, 0.2), logs(0.3, 0.6), torch.tensor([1.0, -1.0])
    ratio = torch.tensor([0.5 / 0.3, 0.2 / 0.6])
    ppo = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.35) * advantages)
    weights = truncated_weights(behavior, behavior, cap=2.0)
    torch.testing.assert_close(clipped_surrogate(policy, behavior, weights, advantages, **SETTINGS), ppo)


def test_an_absurd_ratio_stays_finite_in_the_loss_and_in_its_gradient():
    policy = torch.tensor([-1.0], requires_grad=True)
    loss = clipped_surrogate(policy, torch.tensor([-500.0]), ONE, -ONE, **SETTINGS)
    loss.sum().backward()
    assert loss.isfinite().all() and policy.grad is not None and policy.grad.isfinite().all()


def test_shapes_are_named():
    with pytest.raises(ValueError, match=r"policy_logprobs.*\(2,\).*advantages.*\(1,\)"):
        clipped_surrogate(logs(0.5, 0.5), logs(0.5, 0.5), torch.ones(2), torch.ones(1), **SETTINGS)


def test_sequence_weights_of_two_responses():
    lengths = torch.tensor([1.0, 3.0])
    totals = {"total_tokens": 4.0, "total_sequences": 2.0, "max_response_tokens": 10}
    assert sequence_weights(lengths, aggregation="token_mean", **totals).tolist() == [0.25, 0.25]
    torch.testing.assert_close(sequence_weights(lengths, aggregation="sequence_mean", **totals), torch.tensor([1 / 2, 1 / 6]))
    torch.testing.assert_close(sequence_weights(lengths, aggregation="dr_grpo", **totals), torch.tensor([1 / 20, 1 / 20]))


def test_all_aggregations_agree_on_equal_full_lengths():
    lengths, losses = torch.full((4,), 5.0), torch.arange(4.0)
    totals = {"total_tokens": 20.0, "total_sequences": 4.0, "max_response_tokens": 5}
    sums = [float((sequence_weights(lengths, aggregation=a, **totals) * losses).sum()) for a in ("token_mean", "sequence_mean", "dr_grpo")]
    assert all(math.isclose(value, sums[0], rel_tol=1e-6) for value in sums)


def test_loss_coefficients():
    advantages, probabilities, sizes = torch.tensor([0.8, -0.2]), torch.tensor([0.8, 0.2]), torch.tensor([2, 2])
    assert loss_coefficients(advantages, probabilities, sizes, weight="advantage", importance_exponent=1.0) is advantages
    assert loss_coefficients(advantages, probabilities, sizes, weight="sign", importance_exponent=1.0).tolist() == [1, -1]
    # 1 / (2 * 0.8) and 1 / (2 * 0.2)
    corrected = loss_coefficients(advantages, probabilities, sizes, weight="corrected", importance_exponent=1.0)
    torch.testing.assert_close(corrected, torch.tensor([0.8 / 1.6, -0.2 / 0.4]))
    half = loss_coefficients(advantages, probabilities, sizes, weight="corrected", importance_exponent=0.5)
    torch.testing.assert_close(half, torch.tensor([0.8 / 1.6**0.5, -0.2 / 0.4**0.5]))


def test_full_correction_undoes_the_draw():
    # the expected gradient over draws by P equals the plain mean over the table
    advantages = torch.tensor([0.7, -0.2, 0.1])
    probabilities = advantages.abs() / advantages.abs().sum()
    weights = loss_coefficients(advantages, probabilities, torch.full((3,), 3), weight="corrected", importance_exponent=1.0)
    torch.testing.assert_close((probabilities * weights).sum(), advantages.mean())
