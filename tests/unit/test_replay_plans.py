"""The five modes: what each admits, how it splits a batch, what it keeps; and the removers."""

import numpy as np
import pytest

from conf.schema import ReplayMode, ReplayRemover
from replay.plans import Pool, plan_for
from replay.removers import EndOfStep, Keep, MaxAge, Queue, first_to_leave

SIGNAL_MODES = [mode for mode in ReplayMode if mode not in (ReplayMode.none, ReplayMode.prioritized)]


def plan_of(mode, **settings):
    return plan_for(mode, **{"priority_exponent": 1.0, "age_decay_steps": 500.0, "max_age": 8, **settings})


def rows(start, priorities, ages=None):
    """Places, priorities and ages of the rows of one part."""
    return np.arange(start, start + len(priorities)), np.array(priorities, float), np.zeros(len(priorities), int) if ages is None else ages


FRESH = rows(100, [0.5, 0.25, 0.75, 0.5])
OLDER = rows(0, [0.5, 1.0, 0.1])
NOBODY = rows(0, [])


def draw(mode, *, fresh=FRESH, older=OLDER, num_rows=16, seed=0, **settings):
    plan = plan_of(mode, **settings)

    def pool(selector, places, priorities, ages):
        return Pool(selector=selector, places=places, priorities=priorities, ages=ages)

    older_pool = None if plan.older is None else pool(plan.older, *older)
    return plan.draw(np.random.default_rng(seed), fresh=pool(plan.fresh, *fresh), older=older_pool, num_rows=num_rows)


def test_none_admits_everything():
    assert plan_of("none").admits(np.array([False, True]), np.array([0.0, 0.0])).tolist() == [True, True]


@pytest.mark.parametrize("mode", SIGNAL_MODES)
def test_others_admit_effective_groups_with_an_advantage(mode):
    effective = np.array([True, True, False, False])
    advantages = np.array([0.5, 0.0, 0.01, 0.0])  # the third: a uniform group with a shaped reward
    assert plan_of(mode).admits(effective, advantages).tolist() == [True, False, False, False]


@pytest.mark.parametrize("mode", ["none", "filter"])
def test_none_and_filter_permute_and_repeat(mode):
    drawn = draw(mode, num_rows=10)
    assert drawn.fresh.all()
    counts = np.bincount(drawn.places - 100, minlength=4)
    assert sorted(counts) == [2, 2, 3, 3]
    np.testing.assert_array_equal(drawn.probabilities * drawn.table_sizes, 1)  # so the importance correction is 1
    assert len(set(draw(mode, num_rows=4).places)) == 4


def test_episode_draws_with_replacement_by_advantage():
    drawn = draw("episode", num_rows=4000)
    assert drawn.fresh.all()
    np.testing.assert_allclose(drawn.probabilities, FRESH[1][drawn.places - 100] / 2.0)
    assert np.bincount(drawn.places - 100)[2] == pytest.approx(1500, abs=100)  # .75 of 2


def test_fifo_takes_half_from_the_queue():
    drawn = draw("fifo", num_rows=17)
    assert drawn.fresh.sum() == 9
    assert np.bincount(drawn.places[drawn.fresh] - 100).tolist() in ([2, 2, 2, 3], [2, 2, 3, 2], [2, 3, 2, 2], [3, 2, 2, 2])
    weights = OLDER[1] + 1e-4
    older = drawn.places[~drawn.fresh]
    np.testing.assert_allclose(drawn.probabilities[~drawn.fresh], (weights / weights.sum())[older])
    assert set(drawn.table_sizes[~drawn.fresh]) == {3} and set(drawn.table_sizes[drawn.fresh]) == {4}


def test_fresh_keeps_every_fresh_row_once_and_fills_with_older_ones():
    ages = np.array([1, 2, 8])
    drawn = draw("fresh", older=rows(0, [0.5, 1.0, 0.1], ages), num_rows=16, age_decay_steps=2.0)
    assert sorted(drawn.places[drawn.fresh]) == [100, 101, 102, 103]
    weights = np.array([0.5, 1.0, 0.1]) * np.exp(-ages / 2)
    older = drawn.places[~drawn.fresh]
    assert len(older) == 12
    np.testing.assert_allclose(drawn.probabilities[~drawn.fresh], (weights / weights.sum())[older])


def test_fresh_takes_no_more_than_asked_for():
    drawn = draw("fresh", num_rows=3)
    assert drawn.fresh.all() and len(set(drawn.places)) == 3


@pytest.mark.parametrize("mode", ["fifo", "fresh"])
def test_one_part_fills_the_batch_when_the_other_has_nothing(mode):
    only_fresh = draw(mode, older=NOBODY)
    assert only_fresh.fresh.all() and np.bincount(only_fresh.places - 100).tolist() == [4, 4, 4, 4]
    only_older = draw(mode, fresh=NOBODY)
    assert not only_older.fresh.any() and len(only_older.places) == 16


@pytest.mark.parametrize("mode", ReplayMode)
def test_no_candidates_no_rows(mode):
    assert len(draw(mode, fresh=NOBODY, older=NOBODY).places) == 0


@pytest.mark.parametrize("mode", ["none", "filter", "episode"])
def test_modes_of_one_step_never_look_at_older_rows(mode):
    assert len(draw(mode, fresh=NOBODY).places) == 0


def test_priorities_of_zero_are_no_candidates():
    assert len(draw("episode", fresh=rows(100, [0.0, 0.0])).places) == 0
    assert draw("fresh", older=rows(0, [0.0, 0.0])).fresh.all()


def test_parts_are_mixed_over_the_updates():
    drawn = draw("fifo", num_rows=1000)
    assert drawn.fresh[:500].sum() == pytest.approx(250, abs=60)


def test_alpha_zero_is_uniform_over_rows_with_a_signal():
    drawn = draw("episode", fresh=rows(100, [0.5, 0.0, 0.1]), priority_exponent=0.0)
    np.testing.assert_allclose(drawn.probabilities, 0.5)


@pytest.mark.parametrize("bad", [{"priority_exponent": -1.0}, {"age_decay_steps": 0.0}, {"max_age": -1}])
def test_settings_out_of_range(bad):
    with pytest.raises(ValueError, match="replay needs"):
        plan_of("fresh", **bad)


def test_removers():
    ages = np.array([9, 8, 3, 0])
    assert EndOfStep().expired(ages, step_trajectories=4).all()
    assert MaxAge(max_age=8).expired(ages, step_trajectories=4).tolist() == [True, False, False, False]
    assert Queue(share=0.5).expired(ages, step_trajectories=5).tolist() == [True, True, False, False]  # the newest 2 stay
    assert Queue(share=0.5).expired(ages, step_trajectories=100).tolist() == [False] * 4
    assert Queue(share=0.5).expired(ages, step_trajectories=1).all()


def test_lifetimes_by_mode():
    assert {mode.value: plan_of(mode).remover for mode in ReplayMode} == {
        "none": EndOfStep(),
        "filter": EndOfStep(),
        "episode": EndOfStep(),
        "fifo": Queue(share=0.5),
        "fresh": MaxAge(max_age=8),
        "prioritized": Keep(),
    }


def test_who_makes_room():
    versions, priorities = np.array([4, 2, 9, 2, 7]), np.array([0.5, 0.1, 0.1, 0.7, 0.2])

    def leave(remover, num):
        return first_to_leave(ReplayRemover(remover), versions=versions, priorities=priorities, num=num).tolist()

    assert leave("oldest", 3) == [0, 1, 2]
    assert leave("stalest", 3) == [1, 3, 0]  # of equals the one that came first
    assert leave("lowest_priority", 3) == [1, 2, 4]
    assert leave("lowest_priority", 5) == [1, 2, 4, 0, 3]
    assert leave("stalest", 0) == []


@pytest.mark.parametrize("mode", ["fifo", "fresh", "prioritized"])
def test_a_reuse_limit_bounds_the_fresh_part_too(mode):
    drawn = draw(mode, older=NOBODY, num_rows=16, max_times_sampled=2)
    assert np.bincount(drawn.places - 100, minlength=4).tolist() == [2, 2, 2, 2]


def test_prioritized_is_drawn_from_older_rows_alone():
    drawn = draw("prioritized", fresh=NOBODY, num_rows=4000)
    assert not drawn.fresh.any()
    np.testing.assert_allclose(drawn.probabilities, OLDER[1][drawn.places] / 1.6)
    assert not plan_of("prioritized").waits and plan_of("fresh").waits
