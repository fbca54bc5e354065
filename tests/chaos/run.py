"""One long real run for faults to be injected into: its processes by role, its steps, its end.

The run is `rethinker train` on a private Ray cluster whose control store is on disk, so that every process of it can be killed alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.chaos.accounting import Acknowledged
from tests.chaos.cluster import PrivateCluster
from tests.chaos.disk import SmallDisk

ROOT = Path(__file__).parents[2]
PROMPTS_PER_STEP = 8
START_TIMEOUT_S = 420.0

ROLES: dict[str, Callable[[psutil.Process, str], bool]] = {
    "driver": lambda process, line: "-m cluster train" in line,
    "replay": lambda process, line: line.startswith("ray::ReplayActor"),
    "learner": lambda process, line: line.startswith("ray::LearnerRank"),
    "rollout": lambda process, line: line.startswith("ray::RolloutActor"),
    "engine": lambda process, line: "spawn_main" in line or line.startswith("VLLM"),
    "grader": lambda process, line: "tasks.grading_worker" in line,
    "gcs": lambda process, line: process.name() == "gcs_server",
    "raylet": lambda process, line: process.name() == "raylet",
}
"""How a role's processes are told from others of the same run."""


class ChaosRun:
    """A run that can be hurt.

    Args:
        folder: for the data, the cluster and the run folder.
        cluster: where it runs.
        overrides: settings of the run besides those of the harness.
    """

    def __init__(self, folder: Path, cluster: PrivateCluster, *, overrides: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.cluster = cluster
        self.disk = SmallDisk(folder)
        self.run_folder = self.disk.path / "run"
        self._note = folder / "acknowledged.json"
        self.acknowledged = Acknowledged.read(self._note) if self._note.exists() else Acknowledged()  # now: what fails later saves no less
        self._overrides = overrides
        self._driver: subprocess.Popen[str] | None = None
        self._log = (folder / "driver.log").open("a")

    def start(self, *, resume: bool = False) -> None:
        """Start the driver, and wait for its first step, or until it has restored a checkpoint.

        Args:
            resume: go on in the run folder.
        """
        metrics = self.run_folder / "metrics.jsonl"
        before = metrics.stat().st_ino if metrics.exists() else None
        self._driver = subprocess.Popen(
            self._command(resume=resume), cwd=ROOT, env=self.cluster.environment, text=True, stdout=self._log, stderr=subprocess.STDOUT
        )
        if resume and before is not None:  # the metrics of steps that are done again are cut off, in a new file
            self.wait(lambda: metrics.stat().st_ino != before, START_TIMEOUT_S, "the resumed run to begin")
        else:
            self.wait(lambda: self.steps_done >= 1, START_TIMEOUT_S, "the first step")

    def resume_driver(self) -> None:
        """Start a new driver in the place of one that is gone, and note from which turn it goes on."""
        assert self._driver is not None
        self._driver.wait(timeout=30)
        self.note_acknowledged()
        self.resume()

    def resume(self) -> None:
        """Start a driver that goes on from the newest checkpoint."""
        step = self.checkpoint_step
        self.acknowledged.driver_resumed(step * PROMPTS_PER_STEP, self.run_folder / "checkpoint" / f"step-{step:06d}")
        self.start(resume=True)

    def note_acknowledged(self) -> None:
        """Read what replay has acknowledged so far."""
        self.acknowledged.read_journal(self.run_folder / "journal")

    def stop(self) -> None:
        """Interrupt the run as a user does, and read what it has acknowledged."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.send_signal(signal.SIGINT)
            self._driver.wait(timeout=60)
        self.note_acknowledged()
        self._log.close()

    def save(self) -> None:
        """Keep what was acknowledged for a later series."""
        self.note_acknowledged()
        self.acknowledged.write(self._note)

    def close(self) -> None:
        """Give the disk back."""
        self.disk.close()

    @property
    def driver_pid(self) -> int:
        """Of the newest driver."""
        assert self._driver is not None
        return self._driver.pid

    @property
    def alive(self) -> bool:
        """Whether the driver runs."""
        return self._driver is not None and self._driver.poll() is None

    @property
    def steps_done(self) -> int:
        """The last step in metrics.jsonl."""
        try:
            lines = (self.run_folder / "metrics.jsonl").read_text().splitlines()
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except (FileNotFoundError, json.JSONDecodeError):
            return 0

    def said(self, what: str) -> int:
        """How many lines of the run's log hold some words.

        Args:
            what: the words.

        Returns:
            0 also when there is no log yet.
        """
        try:
            return sum(what in line for line in (self.run_folder / "log.txt").read_text().splitlines())
        except FileNotFoundError:
            return 0

    @property
    def checkpoint_step(self) -> int:
        """Steps that the newest checkpoint has done; 0: there is none."""
        found = sorted((self.run_folder / "checkpoint").glob("step-*"))
        return int(found[-1].name.removeprefix("step-")) if found else 0

    def processes(self, role: str) -> list[psutil.Process]:
        """The living processes of a role.

        Args:
            role: one of ROLES.

        Returns:
            In the order of their ids.
        """
        found = []
        for process in self.cluster.processes():
            try:
                line = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and ROLES[role](process, line):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=lambda process: process.pid)

    def wait(self, until: Callable[[], bool], timeout_s: float, what: str, *, needs_driver: bool = True) -> float:
        """Wait for something to become true.

        Args:
            until: asked again and again.
            timeout_s: deadline.
            what: was waited for, for the error.
            needs_driver: give up when the driver ends.

        Returns:
            Seconds that it took.

        Raises:
            TimeoutError: past the deadline.
            RuntimeError: when the driver has ended.
        """
        begin = time.monotonic()
        while not until():
            if needs_driver and not self.alive:
                raise RuntimeError(f"the run ended while waiting for {what}; the end of {self._log.name}:\n{self.tail()}")
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}; the end of {self._log.name}:\n{self.tail()}")
            time.sleep(0.1)
        return time.monotonic() - begin

    def tail(self, lines: int = 15) -> str:
        """The last lines that the drivers have printed."""
        return "\n".join(Path(self._log.name).read_text().splitlines()[-lines:])

    def _command(self, *, resume: bool) -> list[str]:
        words = [
            f"data.path={self.folder}/data/train",
            f"data.test_path={self.folder}/data/test",
            f"coldstart.cache_dir={self.folder}/coldstart",
            "coldstart.steps=30",
            "coldstart.direct_steps=5",
            "coldstart.examples=600",
            "coldstart.batch_size=32",
            "evaluation.num_questions=8",
            f"algorithm.prompts_per_step={PROMPTS_PER_STEP}",
            "algorithm.samples_per_prompt=4",
            "algorithm.max_staleness=1",
            "rollout.num_actors=2",
            "rollout.prompts_per_call=4",
            "rollout.max_concurrent_sequences=64",
            "rollout.kv_cache_bytes=67108864",
            "rollout.threads=1",
            "learner.threads=1",
            "replay.mode=fresh",
            "checkpoint.every_steps=5",
            "guard.enabled=false",
            "supervision.heartbeat_s=1",
            "supervision.dead_after=8",
            "supervision.max_restarts=100000",
            "run.num_steps=100000",
            f"run.dir={self.run_folder}",
            "run.name=chaos",
            f"run.resume={str(resume).lower()}",
            f"run.overwrite={str(not resume).lower()}",  # of a series that ended before its first checkpoint
            *self._overrides,
        ]
        return [sys.executable, "-m", "cluster", "train", str(ROOT / "conf/experiment/quickstart.yaml"), *words]


def kill(process: psutil.Process) -> None:
    """End a process as a crash does."""
    os.kill(process.pid, signal.SIGKILL)
