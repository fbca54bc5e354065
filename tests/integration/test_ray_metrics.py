"""Step metrics on the Prometheus endpoint that the Ray dashboard's Grafana reads."""

from __future__ import annotations

import time
import urllib.request

import pytest
import ray

from cluster.metrics import MetricSinks, RayMetrics, prometheus_name

STEP = {"reward/mean": 0.375, "kl/behavior_proximal": 0.0, "staleness/max": 2.0}
DEADLINE_S = 60.0


@pytest.fixture
def endpoint():
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def test_every_step_metric_is_on_ray_s_endpoint(endpoint, tmp_path):
    wanted = {f"ray_{prometheus_name(name)}{{": value for name, value in STEP.items()}
    with MetricSinks([RayMetrics("dashboard")]) as sinks:
        sinks.write(1, STEP)
        deadline = time.monotonic() + DEADLINE_S
        found: dict[str, float] = {}
        while len(found) < len(wanted) and time.monotonic() < deadline:
            time.sleep(1.0)
            with urllib.request.urlopen(endpoint, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            ours = [line for line in lines if 'run="dashboard"' in line]
            found = {start: float(line.split()[-1]) for start in wanted for line in ours if line.startswith(start)}
    assert found == wanted
