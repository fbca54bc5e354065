"""The guard: what counts as a collapse, and what does not."""

import math

import pytest

from cluster.guard import CollapseGuard
from conf.schema import GuardConfig

HEALTHY = {"ratio/ess": 0.9, "ratio/mean": 1.0, "effective_query_ratio": 0.6, "accuracy/mean": 0.5}


def guard_after(*steps: dict[str, float], **settings) -> CollapseGuard:
    """The guard after steps that differ from a healthy one by these values."""
    guard = CollapseGuard(GuardConfig(window_steps=4, **settings))
    for step in steps:
        guard.observe({**HEALTHY, **step})
    return guard


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"ratio/ess": 0.05}, ["ratio/ess", "0.05", "guard.min_ess = 0.1"]),
        ({"ratio/mean": 2.5}, ["ratio/mean", "2.5", "guard.max_ratio = 2"]),
        ({"ratio/mean": 0.3}, ["ratio/mean", "0.3", "guard.max_ratio = 2"]),
        ({"ratio/ess": math.nan}, ["ratio/ess", "0"]),
        ({"ratio/mean": math.nan}, ["ratio/mean", "inf"]),
        (
            {"effective_query_ratio": 0.0, "accuracy/mean": 0.0},
            ["effective_query_ratio", "guard.min_effective_query_ratio = 0.02", "from 0.500 to 0.000"],
        ),
    ],
)
def test_a_collapse_is_told_by_its_measure_and_its_threshold(bad, words):
    steps = [{}] * 4 + [bad] * 4
    collapse = guard_after(*steps).collapse
    assert collapse is not None and all(word in collapse for word in words)
    assert guard_after(*steps, enabled=False).collapse is None
    assert not guard_after(*steps, enabled=False).suspicious


def test_half_a_window_decides_and_suspicion_comes_before():
    bad = {"ratio/ess": 0.01}
    for count, suspicious, collapsed in [(1, False, False), (2, True, False), (3, True, True)]:
        guard = guard_after(*[{}] * 4, *[bad] * count)
        assert (guard.suspicious, guard.collapse is not None) == (suspicious, collapsed)


def test_odd_steps_are_no_collapse():
    odd = {"ratio/ess": 0.0, "ratio/mean": 1e6}
    guard = guard_after({}, odd, {}, {}, {}, odd, {}, {})
    assert guard.collapse is None and not guard.suspicious


def test_it_does_not_judge_before_a_window_is_full():
    assert guard_after(*[{"ratio/ess": 0.0}] * 3).collapse is None


def test_prompts_that_are_mastered_are_no_collapse():
    assert guard_after(*[{}] * 4, *[{"effective_query_ratio": 0.0, "accuracy/mean": 1.0}] * 8).collapse is None


def test_a_run_that_has_not_learnt_yet_is_no_collapse():
    assert guard_after(*[{"effective_query_ratio": 0.0, "accuracy/mean": 0.0}] * 20).collapse is None


def test_steps_without_an_update_have_no_ratios_and_are_passed_over():
    guard = CollapseGuard(GuardConfig(window_steps=3))
    for _ in range(10):
        guard.observe({"effective_query_ratio": 0.0, "accuracy/mean": 0.0})
    assert guard.collapse is None and not guard.suspicious


def test_a_policy_that_was_hardly_ever_right_has_not_fallen():
    weak = {"effective_query_ratio": 0.0, "accuracy/mean": 0.03}
    assert guard_after(*[weak] * 4, *[{"effective_query_ratio": 0.0, "accuracy/mean": 0.0}] * 8).collapse is None
    assert guard_after(*[weak] * 4, *[{"effective_query_ratio": 0.0, "accuracy/mean": 0.0}] * 8, min_accuracy_fall=0.02).collapse
