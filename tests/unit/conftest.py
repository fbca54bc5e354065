"""Unit tests cannot start Ray: a mistake is an error at once, not a cluster that somebody forgets."""

import pytest


@pytest.fixture(autouse=True)
def _forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a unit test started Ray; test the plain class, or move the test to tests/integration")

    monkeypatch.setattr(ray, "init", refuse)  # which the first .remote() call goes through, too
