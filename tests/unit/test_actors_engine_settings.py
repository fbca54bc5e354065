"""What vLLM is told."""

from __future__ import annotations

import pytest

from actors.engine.settings import engine_arguments
from conf.schema import Device, ModelConfig, RolloutConfig


def arguments(tmp_path, *, device=Device.gpu, **rollout):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    return engine_arguments(
        str(tmp_path),
        model=ModelConfig(),
        rollout=RolloutConfig(**rollout),
        device=device,
        seed=1,
        worker_extension=None,
        metrics_name="r/0",
    )


@pytest.mark.parametrize("device", Device)
def test_the_workers_of_a_tensor_parallel_engine_are_processes_of_its_node(tmp_path, device):
    """Ray's own executor would ask for a bundle a GPU, and vLLM takes it by itself inside a placement group."""
    told = arguments(tmp_path, device=device, tensor_parallel_size=8)
    assert (told["tensor_parallel_size"], told["distributed_executor_backend"]) == (8, "mp")
    assert arguments(tmp_path, device=device)["distributed_executor_backend"] is None


def test_metrics_are_labelled_by_the_rollout_actor(tmp_path):
    assert arguments(tmp_path)["served_model_name"] == "r/0"
