"""Draws by the tree: weights, frequencies, exactness over long runs, and the limit of reuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from algorithms.priorities import selection_probabilities
from replay.priority_tree import PriorityTree
from replay.selectors import Prioritized
from replay.sumtree import FANOUT, SumTree

SMALLEST_P_VALUE = 1e-4  # seeds are fixed, so a failure is a change and not bad luck
NEVER_DRAWN = np.zeros(10_000, dtype=np.int64)


def entered(rule, priorities, versions, **settings):
    tree = PriorityTree(rule, **settings)
    tree.enter(np.arange(len(priorities)), np.asarray(priorities, float), np.asarray(versions))
    return tree


# -- the sums --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3000), st.sampled_from([0.0, 1e-9, 0.5, 1.0, 7e8])), max_size=60))
@settings(deadline=None)
def test_the_tree_inverts_the_cumulative_sum(changes):
    tree, model = SumTree(), np.zeros(3001)
    for place, weight in changes:
        tree.set(np.array([place]), np.array([weight]))
        model[place] = weight
    assert tree.total == pytest.approx(model.sum(), rel=1e-14)
    if model.sum() > 0:
        shares = np.concatenate([np.random.default_rng(0).random(50), [0.0, np.nextafter(1.0, 0.0)]])
        found = tree.find(shares)
        assert (model[found] > 0).all()
        ends = np.cumsum(model) / model.sum()
        assert (shares <= ends[found] + 1e-12).all() and (shares >= ends[found] - model[found] / model.sum() - 1e-12).all()


def test_the_last_bit_of_a_share_never_finds_a_weight_of_zero():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weights = rng.random(FANOUT * 40) * 10.0 ** rng.integers(-12, 12, FANOUT * 40)
        weights[rng.random(len(weights)) < 0.7] = 0.0
        tree = SumTree()
        tree.reset(weights)
        borders = np.cumsum(weights) / weights.sum()
        shares = np.clip(np.concatenate([borders, np.nextafter(borders, 0), np.nextafter(borders, 1)]), 0, np.nextafter(1.0, 0.0))
        assert (weights[tree.find(shares)] > 0).all()


def test_changes_leave_no_trace():
    rng, tree = np.random.default_rng(0), SumTree()
    for _ in range(300):
        tree.set(np.unique(rng.integers(0, 5000, 40)), float(10 ** rng.uniform(-8, 8)))
    final = rng.random(5000)
    tree.set(np.arange(5000), final)
    clean = SumTree()
    clean.reset(final)
    assert tree.total == clean.total  # to the last bit
    shares = rng.random(10_000)
    np.testing.assert_array_equal(tree.find(shares), clean.find(shares))


# -- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [Prioritized(exponent=1.0), Prioritized(exponent=0.6, epsilon=1e-4), Prioritized(exponent=2.0, decay=5.0)], ids=str
)
def test_draws_follow_p_and_state_it(rule):
    rng = np.random.default_rng(1)
    priorities, versions = rng.random(300), rng.integers(0, 30, 300)
    priorities[::7] = 0.0
    expected = selection_probabilities(priorities, 40 - versions, exponent=rule.exponent, epsilon=rule.epsilon, decay=rule.decay)
    selection = entered(rule, priorities, versions).draw(rng, 300_000, NEVER_DRAWN)
    np.testing.assert_allclose(selection.probabilities, expected[selection.indices], rtol=1e-12)
    counts, likely = np.bincount(selection.indices, minlength=300), expected * 300_000 > 5
    assert counts[expected == 0].sum() == 0
    assert set(selection.table_sizes) == {np.count_nonzero(expected)}
    rest = [counts[~likely].sum()], [expected[~likely].sum() * 300_000]
    observed, wanted = np.concatenate([counts[likely], rest[0]]), np.concatenate([expected[likely] * 300_000, rest[1]])
    assert chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > SMALLEST_P_VALUE


def test_age_decay_is_exact_over_a_hundred_thousand_steps():
    # every 50 versions a row is replaced; nothing else is touched as the rest gets older
    rule, rng = Prioritized(exponent=0.6, decay=500.0), np.random.default_rng(2)
    num = 1_000_000
    priorities, versions = rng.random(num), np.zeros(num, dtype=np.int64)
    tree = entered(rule, priorities, versions)
    for version in range(0, 100_001, 50):
        place = rng.integers(0, num, 1)
        priorities[place], versions[place] = rng.random(), version
        tree.enter(place, priorities[place], versions[place])
    expected = selection_probabilities(priorities, 100_000 - versions, exponent=0.6, decay=500.0)
    selection = tree.draw(rng, 100_000, NEVER_DRAWN)
    np.testing.assert_allclose(selection.probabilities, expected[selection.indices], rtol=1e-12)


def test_rows_far_below_the_base_can_be_drawn_once_they_are_alone():
    rule = Prioritized(exponent=1.0, decay=1.0)
    tree = entered(rule, [1.0, 3.0, 1.0], [10, 10, 100_000])
    tree.leave(np.array([2]))
    selection = tree.draw(np.random.default_rng(0), 1000, NEVER_DRAWN)
    assert set(selection.indices) == {0, 1}
    np.testing.assert_allclose(selection.probabilities, np.array([0.25, 0.75])[selection.indices], rtol=1e-14)


def test_what_can_be_drawn_is_counted():
    tree = entered(Prioritized(exponent=1.0), [0.5, 0.0, 0.25], [0, 0, 0])
    assert tree.num_drawable == 2
    tree.enter(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0, 0]))
    tree.leave(np.array([2, 77]))
    assert tree.num_drawable == 1
    tree.leave(np.array([1, 1000]))
    with pytest.raises(ValueError, match="no candidates"):
        tree.draw(np.random.default_rng(0), 1, NEVER_DRAWN)


def test_a_priority_too_large_to_be_summed_is_refused():
    tree = entered(Prioritized(exponent=2.0), [0.5], [0])
    with pytest.raises(ValueError, match=r"priority 1e\+90 to the power of replay.priority_exponent=2"):
        tree.enter(np.array([0]), np.array([1e90]), np.array([0]))
    assert tree.draw(np.random.default_rng(0), 1, NEVER_DRAWN).probabilities.tolist() == [1.0]


def test_rows_keep_their_weights_when_they_move():
    rng = np.random.default_rng(5)
    priorities = rng.random(100)
    tree, moved = (entered(Prioritized(exponent=1.0, decay=3.0), priorities, np.arange(100)) for _ in range(2))
    kept = np.flatnonzero(rng.random(100) < 0.4)
    gone = np.setdiff1d(np.arange(100), kept)
    for one in (tree, moved):
        one.leave(gone)
    moved.move(kept, len(kept))
    stayed, shifted = tree.draw(np.random.default_rng(0), 500, NEVER_DRAWN), moved.draw(np.random.default_rng(0), 500, NEVER_DRAWN)
    np.testing.assert_array_equal(stayed.indices, kept[shifted.indices])
    np.testing.assert_allclose(stayed.probabilities, shifted.probabilities, rtol=1e-13)


# -- the limit of reuse ----------------------------------------------------------------------------------------------


def one_by_one(rng, weights, remaining, num):
    """The rule itself: draw, count, take out what is used up."""
    weights, remaining, drawn = weights.copy(), remaining.copy(), []
    while len(drawn) < num and weights.sum() > 0:
        drawn.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        remaining[drawn[-1]] -= 1
        weights[drawn[-1]] *= remaining[drawn[-1]] > 0
    return drawn


def test_limited_draws_are_distributed_as_if_made_one_by_one():
    weights, used = np.array([8.0, 4.0, 2.0, 1.0, 1.0]), np.array([1, 0, 0, 1, 0])
    rule = Prioritized(exponent=1.0)
    rng, plain = np.random.default_rng(3), np.random.default_rng(4)
    ours, theirs = np.zeros((5, 5)), np.zeros((5, 5))  # [position of the draw, row]
    for _ in range(6000):
        for position, row in enumerate(entered(rule, weights, np.zeros(5, int), max_times_sampled=2).draw(rng, 5, used).indices):
            ours[position, row] += 1
        for position, row in enumerate(one_by_one(plain, weights, 2 - used, 5)):
            theirs[position, row] += 1
    for position in range(5):
        expected = theirs[position]
        assert np.abs(ours[position] - expected).max() < 5 * np.sqrt(2 * expected.max())


def test_limited_draws_state_the_probability_of_their_moment():
    tree = entered(Prioritized(exponent=1.0), [4.0, 2.0, 1.0], [0, 0, 0], max_times_sampled=1)
    for seed in range(50):
        selection = tree.draw(np.random.default_rng(seed), 3, np.zeros(3, dtype=np.int64))
        weights = np.array([4.0, 2.0, 1.0])[selection.indices]
        np.testing.assert_allclose(selection.probabilities, weights / (7 - np.concatenate([[0], np.cumsum(weights)[:-1]])))
        assert selection.table_sizes.tolist() == [3, 2, 1]


def test_limited_draws_end_when_everything_is_used_up():
    tree = entered(Prioritized(exponent=1.0), np.geomspace(1, 1e12, 40), np.zeros(40, int), max_times_sampled=3)
    selection = tree.draw(np.random.default_rng(0), 500, np.zeros(40, dtype=np.int64))
    assert np.bincount(selection.indices).tolist() == [3] * 40
    assert tree.num_drawable == 40  # who leaves is the table's business


@given(st.integers(1, 3000), st.integers(0, 200_000), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_the_room_behind_the_weights_changes_no_draw_in_the_last_bit(num, room, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(num) * 10.0 ** rng.integers(-6, 6, num)
    small, large = SumTree(), SumTree()
    small.reset(weights)
    large.set(np.array([num + room]), np.zeros(1))
    for places in np.array_split(rng.permutation(num), 3):
        large.set(places, weights[places])
    assert small.total == large.total
    shares = np.append(rng.random(300), [0.0, np.nextafter(1.0, 0.0)])
    assert np.array_equal(small.find(shares), large.find(shares))
