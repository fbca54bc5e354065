"""The Grafana board and the alert rules by themselves; test_submission runs every expression against a server that scrapes a real run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.integration.prometheus_server import FOLDER, rules


def test_the_board_can_be_imported():
    board = json.loads((FOLDER / "rethinker.json").read_text())
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "run"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))


# -- what each alert fires at, by promtool's own unit tests -----------------------------------------------------------

QUIET = {
    'role_state{run="r",role="rollout",rank="0",state="healthy"}': "1x120",
    'role_state{run="r",role="rollout",rank="0",state="suspect"}': "0x120",
    'role_state{run="r",role="rollout",rank="0",state="stale"}': "0x120",
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
    "RethinkerRoleUnwell": {'role_state{run="r",role="rollout",rank="0",state="suspect"}': "1x120"},
    "RethinkerWeightSyncFails": {'role_state{run="r",role="rollout",rank="0",state="stale"}': "1x120"},
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine (Debian's package prometheus)")
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
                            {"series": f"ray_rethinker_{name}" + ("" if "{" in name else '{run="r"}'), "values": values}
                            for name, values in series.items()
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
    role = {"role": "rollout"} if "role_state" in rule["expr"] else {}
    annotations = {
        name: text.replace("{{ $labels.run }}", "r").replace("{{ $labels.role }}", "rollout") for name, text in rule["annotations"].items()
    }
    return {"exp_labels": {"run": "r", **role, **rule["labels"]}, "exp_annotations": annotations}
