import pytest
import ray


def test_a_unit_test_cannot_start_ray() -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test started Ray"):
        ray.init()


def test_nor_by_a_remote_call() -> None:
    with pytest.raises(pytest.fail.Exception, match="a unit test started Ray"):
        ray.remote(lambda: 1).remote()
    assert not ray.is_initialized()
