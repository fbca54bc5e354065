"""The Grafana board and the alert rules, against a real Prometheus server that scrapes Ray's endpoint with a run's metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import ray
import yaml

from cluster.metrics import MetricSinks, RayMetrics, read_metrics
from tests.integration.conftest import ROOT, free_port

FOLDER = ROOT / "cluster/grafana"
DEADLINE_S = 90.0

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine (Debian's package prometheus)")


@pytest.fixture(scope="module")
def prometheus(asynchronous_run, tmp_path_factory):
    """A server that has scraped a whole run's step metrics; its address."""
    rows = read_metrics(asynchronous_run[0] / "metrics.jsonl")
    folder = tmp_path_factory.mktemp("prometheus")
    ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    (node,) = ray.nodes()
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(FOLDER / "alerts.yaml")],
        "scrape_configs": [
            {"job_name": "ray", "static_configs": [{"targets": [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with MetricSinks([RayMetrics("board")]) as sinks:
            for row in rows:  # a step every few seconds, as in a run
                sinks.write(int(row.pop("step")), row)
                time.sleep(2.0)
            deadline = time.monotonic() + DEADLINE_S
            while not query(address, 'deriv(ray_rethinker_tokens_generated{run="board"}[5m])'):
                assert time.monotonic() < deadline, f"prometheus has not scraped {node['NodeManagerAddress']} within {DEADLINE_S} s"
                time.sleep(1.0)
            yield address
    finally:
        server.terminate()
        server.wait(10)
        ray.shutdown()


def query(address: str, expression: str) -> list:
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except ConnectionError:  # not listening yet
        return []
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            return []
        raise


def board_expressions() -> list[str]:
    board = json.loads((FOLDER / "rethinker.json").read_text())
    return [target["expr"].replace("$run", "board") for panel in board["panels"] for target in panel.get("targets", [])]


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def test_every_panel_of_the_board_shows_data(prometheus):
    assert len(board_expressions()) > 20
    assert [expression for expression in board_expressions() if not query(prometheus, expression)] == []


def test_every_metric_of_an_alert_has_data_and_every_rule_is_loaded(prometheus):
    names = {name for rule in rules() for name in re.findall(r"ray_rethinker_\w+", rule["expr"])}
    assert [name for name in sorted(names) if not query(prometheus, name)] == []
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/rules", timeout=10) as answer:
        loaded = {rule["name"] for group in json.load(answer)["data"]["groups"] for rule in group["rules"]}
    assert loaded == {rule["alert"] for rule in rules()}


def test_the_board_can_be_imported():
    board = json.loads((FOLDER / "rethinker.json").read_text())
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "run"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))


# -- what each alert fires at, by promtool's own unit tests -----------------------------------------------------------

QUIET = {
    "time_replay_wait_s": "1x120", "time_step_s": "10x120", "staleness_mean": "1x120", "effective_query_ratio": "0.6x120",
    "kl_engine_mismatch": "0.001x120", "ratio_ess": "0.95x120", "tokens_generated": "0+100x120", "rollout_actors": "4x120",
}  # fmt: skip
FIRES = {
    "RethinkerLearnerStarves": {"time_replay_wait_s": "8x120"},
    "RethinkerStalenessGrows": {"staleness_mean": "2.5+0.01x120"},
    "RethinkerNothingToLearnFrom": {"effective_query_ratio": "0.05x120"},
    "RethinkerEngineMismatch": {"kl_engine_mismatch": "0.9x120"},
    "RethinkerRolloutActorsLost": {"rollout_actors": "4x80 3x40"},
    "RethinkerEffectiveSampleSizeLow": {"ratio_ess": "0.1x120"},
    "RethinkerStandsStill": {"tokens_generated": "100x120"},
}


@pytest.mark.parametrize("alert", [None, *FIRES])
def test_an_alert_fires_at_its_fault_and_at_nothing_else(alert: str | None, tmp_path: Path):
    series = {**QUIET, **(FIRES[alert] if alert else {})}
    at = "2h"
    expected = [
        {"eval_time": at, "alertname": rule["alert"], "exp_alerts": [expectation(rule)] if rule["alert"] == alert else []}
        for rule in rules()
    ]
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(FOLDER / "alerts.yaml")],
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [
                            {"series": f'ray_rethinker_{name}{{run="r"}}', "values": values} for name, values in series.items()
                        ],
                        "alert_rule_test": expected,
                    }
                ],
            }
        )
    )
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def expectation(rule: dict) -> dict:
    annotations = {name: text.replace("{{ $labels.run }}", "r") for name, text in rule["annotations"].items()}
    return {"exp_labels": {"run": "r", **rule["labels"]}, "exp_annotations": annotations}
