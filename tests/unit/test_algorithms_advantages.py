"""Advantages against values computed by hand."""

import numpy as np
import pytest

from algorithms.advantages import group_advantages


def test_mean_subtracts_the_group_mean_and_divides_by_nothing():
    # mean of 1, 0, 0, 0 is 0.25
    np.testing.assert_allclose(group_advantages(np.array([1.0, 0, 0, 0]), kind="mean"), [0.75, -0.25, -0.25, -0.25])


def test_std_divides_by_the_population_deviation():
    # rewards 1, 0: mean 0.5, deviation 0.5
    np.testing.assert_allclose(group_advantages(np.array([1.0, 0]), kind="std"), [1, -1], atol=1e-5)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 3 against mean(0, 0) = 0; 0 against mean(3, 0) = 1.5
    np.testing.assert_allclose(group_advantages(np.array([3.0, 0, 0]), kind="leave_one_out"), [3, -1.5, -1.5])


@pytest.mark.parametrize("kind", ["mean", "std", "leave_one_out"])
def test_uniform_groups_have_no_signal_and_others_sum_to_zero(kind):
    np.testing.assert_array_equal(group_advantages(np.full(8, 0.7), kind=kind), np.zeros(8))
    mixed = group_advantages(np.array([1, 0, 1, 0, 0, -0.1, 1, 0]), kind=kind)
    assert abs(mixed.sum()) < 1e-5 and mixed.dtype == np.float32


@pytest.mark.parametrize("rewards", [np.array([1.0]), np.ones((2, 2))])
def test_refuses_what_is_no_group(rewards):
    with pytest.raises(ValueError, match="shape"):
        group_advantages(rewards, kind="mean")
