"""A private Ray cluster of real processes, each of which can be killed and started again alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil
from ray.util import get_node_ip_address

from tests.chaos.link import Link
from tests.integration.conftest import free_port

ROOT = Path(__file__).parents[2]
MARK = "RETHINKER_CHAOS"  # in the environment of every process of the cluster and of its runs
START_TIMEOUT_S = 120.0


class PrivateCluster:
    """A head whose control store is on disk, and any number of further nodes.

    Args:
        num_cpus: that the head declares.
    """

    def __init__(self, *, num_cpus: int = 8) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rc"))  # a short path, since Ray puts sockets below it
        self.name = uuid.uuid4().hex
        self.port = free_port()
        self._num_cpus = num_cpus
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            MARK: self.name,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # other tests, which may run beside it, would starve them
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(self.folder / "store"),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def start(self) -> None:
        """Start the head, and return when it answers."""
        self._ray(
            "start", "--head", f"--port={self.port}", f"--num-cpus={self._num_cpus}", f"--temp-dir={self.folder / 't'}",
            "--include-dashboard=false", "--object-store-memory=200000000", "--disable-usage-stats",
        )  # fmt: skip

    def add_node(self, *, num_cpus: int, resources: str = "{}", link: Link | None = None) -> psutil.Process:
        """Start one more raylet.

        Args:
            num_cpus: that it declares.
            resources: further ones, as JSON.
            link: that it is behind; None: it shares the head's network.

        Returns:
            The raylet.
        """
        before = {process.pid for process in self.processes()}
        self._ray(
            "start", f"--address={self.address if link else '127.0.0.1'}:{self.port}", f"--num-cpus={num_cpus}", f"--resources={resources}",
            "--object-store-memory=80000000", "--disable-usage-stats", *([f"--node-ip-address={link.address}"] if link else []),
            prefix=link.prefix if link else [],
        )  # fmt: skip
        return next(process for process in self.processes() if process.name() == "raylet" and process.pid not in before)

    @property
    def address(self) -> str:
        """Of the head, for other nodes: the one that Ray has chosen for it."""
        return get_node_ip_address()

    def respawn(self, process: psutil.Process, *, after_s: float) -> psutil.Process:
        """Kill a daemon, and start it again as whoever watches over it does: with its own command line and environment.

        Args:
            process: such as gcs_server.
            after_s: how long it is gone.

        Returns:
            Its successor.
        """
        command, environment, folder = process.cmdline(), process.environ(), process.cwd()
        process.kill()
        psutil.wait_procs([process], timeout=10)
        time.sleep(after_s)
        with (self.folder / "respawned.log").open("a") as log:
            successor = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        return psutil.Process(successor.pid)

    def processes(self) -> list[psutil.Process]:
        """All living processes of the cluster and of what runs on it, those of cleaned environments included."""
        marked = [process for process in psutil.process_iter(["environ"]) if (process.info["environ"] or {}).get(MARK) == self.name]
        found = {process.pid: process for process in marked}
        for process in marked:
            try:
                found |= {child.pid: child for child in process.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return list(found.values())

    def close(self) -> None:
        """End every process of the cluster, by its id, and remove its files."""
        deadline = time.monotonic() + 20
        while (alive := self.processes()) and time.monotonic() < deadline:
            for process in alive:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(alive, timeout=2)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ray(self, *words: str, prefix: Sequence[str] = ()) -> None:
        ray = Path(sys.executable).parent / "ray"
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with (self.folder / "ray.log").open("a") as log:
            subprocess.run([*prefix, ray, *words], env=environment, stdout=log, stderr=log, timeout=START_TIMEOUT_S, check=True)
