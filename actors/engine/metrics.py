"""vLLM's own metrics on Ray's Prometheus endpoint, by vLLM's own logger for Ray. The one file of the engine that knows Ray."""

from __future__ import annotations

from typing import Any

from ray.util import metrics


def ray_stat_loggers() -> list[Any]:
    """Make what vLLM takes as ``stat_loggers``; the process has to be a Ray worker.

    Returns:
        vLLM's logger, whose metrics are called ``ray_vllm_...`` on the endpoint.
    """
    from vllm.v1.metrics import ray_wrappers

    if ray_wrappers.ray_metrics is None:
        # vLLM imports Ray Serve beside Ray's metrics, for a label that only Serve's replicas have, and gives both up where Serve's own
        # dependencies are not installed.
        ray_wrappers.ray_metrics = metrics

    class WithoutTokens(ray_wrappers.RayPrometheusStatLogger):
        """All but the time between two tokens: an observation for every token of every sequence costs 7 us each in the engine's loop."""

        def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
            if iteration_stats is not None:
                iteration_stats.inter_token_latencies_iter.clear()
            super().record(scheduler_stats, iteration_stats, *others, **more)

    return [WithoutTokens]
