"""A real Prometheus server (Debian's package) that scrapes one endpoint, and the expressions of the shipped board and rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.integration.conftest import ROOT, free_port

FOLDER = ROOT / "cluster/grafana"
PROMETHEUS = shutil.which("prometheus")


@contextmanager
def prometheus(endpoint: str, folder: Path) -> Iterator[str]:
    """Scrape an endpoint (host:port) every second, with the shipped rules loaded; yields the server's address."""
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(FOLDER / "alerts.yaml")],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": [endpoint]}]}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    assert PROMETHEUS is not None
    server = subprocess.Popen(
        [PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        server.terminate()
        server.wait(10)


def query(address: str, expression: str) -> list:
    """What an expression returns; nothing while the server does not listen yet."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except ConnectionError:
        return []
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            return []
        raise


def loaded_rules(address: str) -> set[str]:
    """Names of the rules that the server has."""
    with urllib.request.urlopen(f"http://{address}/api/v1/rules", timeout=10) as answer:
        return {rule["name"] for group in json.load(answer)["data"]["groups"] for rule in group["rules"]}


def board_expressions(run: str) -> list[str]:
    """Every expression of the board, for one run."""
    board = json.loads((FOLDER / "rethinker.json").read_text())
    return [target["expr"].replace("$run", run) for panel in board["panels"] for target in panel.get("targets", [])]


def rules() -> list[dict]:
    """Every alert rule."""
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
