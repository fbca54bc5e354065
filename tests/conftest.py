"""What unit and integration tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model of random weights, built once."""
    from tasks.quickstart import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=1)
