"""What unit and integration tests share."""

from pathlib import Path

import pytest

SHARED = ("asynchronous_run", "workshop")  # what takes long to make; the first uses the second


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares a fixture together when integration tests are spread over two workers (--dist=loadgroup)."""
    for item in items:
        shared = next((name for name in SHARED if name in getattr(item, "fixturenames", ())), None)
        item.add_marker(pytest.mark.xdist_group(shared or item.path.stem))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model of random weights, built once."""
    from tasks.quickstart import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=1)
