"""What unit and integration tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as make does: sums of several threads differ in their last digits, run by run

LONGEST_FIRST = (
    "test_exact_resume.py", "test_weight_failures.py", "test_supervised_run.py", "test_submission.py", "test_chaos.py", "test_main_job.py",
    "test_bad_input.py", "test_own_data.py", "test_learner.py", "test_recipes.py", "test_weight_sync.py", "test_weights_arrive.py",
    "test_replay_actor.py", "test_families.py", "test_rethinking.py", "test_learner_group.py",
)  # fmt: skip
"""Files of engine tests, so that two workers that take one file after the other come to an end together. The second needs no cold start,
which the first makes meanwhile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files of the selected tests first; the others, and the tests of a file, stay in their order."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model of random weights, built once."""
    from tasks.quickstart import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=1)
