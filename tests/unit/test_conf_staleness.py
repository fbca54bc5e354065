"""The staleness bound as a property of the configuration."""

import pytest

from conf.loading import load_config
from conf.staleness import StalenessBound, staleness_bound


def bound(*overrides: str) -> StalenessBound:
    return staleness_bound(load_config("quickstart", overrides))


def test_the_synchronous_mode_is_on_policy_but_for_the_updates_within_a_step():
    assert bound() == StalenessBound(fresh_versions=0, replayed_versions=0, fresh_updates=0, groups_ahead=64)
    assert bound("algorithm.updates_per_step=4").fresh_updates == 3


def test_the_example_of_the_docstring():
    found = bound("algorithm.max_staleness=2", "algorithm.updates_per_step=4")
    assert (found.fresh_versions, found.fresh_updates, found.groups_ahead) == (2, 11, 192)


@pytest.mark.parametrize(
    ("mode", "replayed"), [("none", 3), ("filter", 3), ("episode", 3), ("fresh", 8), ("fifo", None), ("prioritized", None)]
)
def test_older_rows_are_bounded_by_the_replay_mode(mode: str, replayed: int | None):
    assert bound("algorithm.max_staleness=3", f"replay.mode={mode}", "replay.max_age=8").replayed_versions == replayed
