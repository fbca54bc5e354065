"""What vLLM is told: its environment and its arguments, with everything that differs between CPU and GPU in one table.

Owns the settings of one engine. Must not know Ray; it does not import vLLM.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from conf.schema import Device, ModelConfig, RolloutConfig
from tasks.families import resizes_by_pixels
from weights import NCCL_BACKEND, SHARED_MEMORY_BACKEND, WORKER_EXTENSION


@dataclass(frozen=True, kw_only=True, slots=True)
class _Platform:
    """One column of the table of differences."""

    weight_backend: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


def _platform(device: Device, rollout: RolloutConfig) -> _Platform:
    """Everything that differs between the two kinds of machine."""
    if device is Device.gpu:
        return _Platform(weight_backend=NCCL_BACKEND, arguments={"gpu_memory_utilization": rollout.gpu_memory_utilization})
    return _Platform(
        weight_backend=SHARED_MEMORY_BACKEND,
        environment={
            # One process for scheduler and model instead of two: less memory, and no worker that polls while idle.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # vLLM binds threads to cores by itself and takes the same cores in every engine of a machine.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # OpenMP threads that wait by spinning take the core from the learner beside them; a few microseconds of it save
            # a small model a call of the kernel between two operations (an eighth of the time, docs/benchmarks.md).
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "1000",
            # The few torch.compile'd helpers of the sampler would call a C++ compiler, which users need not have.
            "TORCHDYNAMO_DISABLE": "1",
        },
        arguments={
            "kv_cache_memory_bytes": rollout.kv_cache_bytes,
            "enforce_eager": True,  # compiling costs a compiler and start time; small models gain nothing
            "skip_mm_profiling": True,  # it sizes GPU memory
            # vLLM rewinds a request's random generator after a partial prefill, and a CPU generator cannot be rewound: with
            # chunked prefill a seeded request kills the engine ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
        },
    )


def set_environment(device: Device, *, rollout: RolloutConfig, local_model: bool) -> None:
    """Set what vLLM and OpenMP read from the environment; must run before vLLM is imported in this process.

    Args:
        device: CPU or GPU.
        rollout: threads of the engine.
        local_model: the model is a folder, so nothing may be asked of a model hub.
    """
    os.environ.update(_platform(device, rollout).environment)
    os.environ["OMP_NUM_THREADS"] = str(rollout.threads)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # importing it would make a semaphore in shared memory that a killed process leaves there
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if local_model:
        os.environ["HF_HUB_OFFLINE"] = "1"


def engine_arguments(
    model_path: str,
    *,
    model: ModelConfig,
    rollout: RolloutConfig,
    device: Device,
    seed: int,
    worker_extension: str | None,
    metrics_name: str | None = None,
) -> dict[str, Any]:
    """The keyword arguments of vLLM's AsyncEngineArgs.

    Args:
        model_path: a Hugging Face folder.
        model: limits, pixels and number format.
        rollout: engine size.
        device: CPU or GPU.
        seed: of vLLM's own random state.
        worker_extension: None: weights.receiver's.
        metrics_name: the label "model_name" of vLLM's metrics; None: the folder.

    Returns:
        Plain values.
    """
    platform = _platform(device, rollout)
    return {
        "model": model_path,
        "served_model_name": metrics_name,
        "dtype": model.dtype.value,
        "seed": seed,
        # One more than both limits together: vLLM scores a whole response only when it may sample one more token.
        "max_model_len": model.max_prompt_tokens + model.max_response_tokens + 1,
        "max_num_seqs": rollout.max_concurrent_sequences,
        "max_num_batched_tokens": rollout.max_batched_tokens,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        # In a placement group vLLM would let Ray start its workers, with a bundle for each GPU; ours is one bundle on one node.
        "distributed_executor_backend": "mp" if rollout.tensor_parallel_size > 1 else None,
        "limit_mm_per_prompt": {"image": model.max_images_per_prompt, "video": 0},
        # vLLM's cache of processed images is emptied at every weight update, and a request that was prepared just before
        # then names pixels that the engine has no longer. An image is processed once per visit; the cache would save nothing.
        "mm_processor_cache_gb": 0,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "safetensors",  # other formats are pickles, which run code
        "generation_config": "vllm",  # a model folder's sampling defaults must not leak in
        "logprobs_mode": "processed_logprobs",  # those of the distribution that was sampled from
        "weight_transfer_config": {"backend": platform.weight_backend},
        "worker_extension_cls": worker_extension or WORKER_EXTENSION,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **_picture_sizes(model_path, model),
        **platform.arguments,
    }


def _picture_sizes(model_path: str, model: ModelConfig) -> dict[str, Any]:
    """The limits of pixels, for the image processors that have such limits."""
    if not resizes_by_pixels(model_path):
        return {}
    return {"mm_processor_kwargs": {"size": {"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels}}}
