"""Selection probabilities against values computed by hand, and their limits."""

import numpy as np
import pytest

from algorithms.priorities import selection_probabilities


def test_alpha_one_is_proportional_to_the_magnitude():
    # |A| = 0.75, 0.25, 0 : sum 1
    np.testing.assert_allclose(selection_probabilities(np.array([0.75, -0.25, 0.0]), exponent=1.0), [0.75, 0.25, 0])


def test_alpha_two_squares_the_weights():
    # 9 : 1
    np.testing.assert_allclose(selection_probabilities(np.array([3.0, -1.0]), exponent=2.0), [0.9, 0.1])


def test_alpha_zero_is_uniform_among_samples_with_a_signal():
    np.testing.assert_allclose(selection_probabilities(np.array([0.9, -0.1, 0.0]), exponent=0.0), [0.5, 0.5, 0])


def test_epsilon_gives_zeros_a_chance():
    # weights 0.5 + 0.5, 0 + 0.5
    np.testing.assert_allclose(selection_probabilities(np.array([0.5, 0.0]), exponent=1.0, epsilon=0.5), [2 / 3, 1 / 3])


def test_age_decays_exponentially_and_only_relatively():
    ages = np.array([0, 10])
    # weights 1 and e^-1
    expected = np.array([1, np.exp(-1)]) / (1 + np.exp(-1))
    np.testing.assert_allclose(selection_probabilities(np.ones(2), ages, exponent=1.0, decay=10.0), expected)
    np.testing.assert_allclose(selection_probabilities(np.ones(2), ages + 100_000, exponent=1.0, decay=10.0), expected)


def test_nothing_to_select_is_an_error():
    with pytest.raises(ValueError, match="nothing to select"):
        selection_probabilities(np.zeros(4), exponent=1.0)
    with pytest.raises(ValueError, match="nothing to select"):
        selection_probabilities(np.zeros(0), exponent=1.0, epsilon=1.0)


def test_decay_needs_ages():
    with pytest.raises(ValueError, match="ages"):
        selection_probabilities(np.ones(2), exponent=1.0, decay=10.0)
