"""What the integration tests share: a small copy of the quickstart with a short cold start, made once for all workers of pytest-xdist."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 420.0
INTERRUPTION_S = 10.0  # that Ctrl-C may take, the end of every process included
MEASURE_EVERY_S = 3.0
# Else Ray's workers have a low priority, and what tests start by themselves starves those of the tests beside them.
EVEN = {"RAY_worker_niceness": "0"}
os.environ.update(EVEN)
MARK = "RETHINKER_TEST"  # in the environment of every process that a test's command starts


@dataclass(frozen=True)
class Workshop:
    """A folder with data, and the words that make `rethinker train` use it in the smallest size that is still whole."""

    folder: Path
    peaks: dict[str, int] = field(default_factory=dict)  # bytes that a run's processes had at most, together, by its name

    @property
    def overrides(self) -> list[str]:
        """Settings of a run of a few steps."""
        return [
            f"data.path={self.folder}/data/train",
            f"data.test_path={self.folder}/data/test",
            f"coldstart.cache_dir={self.folder}/coldstart",
            "coldstart.steps=120",  # so many that every step after them has something to learn from
            "coldstart.direct_steps=10",
            "coldstart.examples=600",
            "coldstart.batch_size=32",
            "evaluation.num_questions=40",
            "algorithm.prompts_per_step=8",
            "algorithm.samples_per_prompt=4",
            "rollout.prompts_per_call=4",
            "rollout.max_concurrent_sequences=64",
            "rollout.kv_cache_bytes=67108864",
            "rollout.threads=1",  # what runs beside it takes the other core, and threads that wait for each other would take turns on one
            "learner.threads=1",
            "run.num_steps=4",
            "cluster.dashboard=false",
            "cluster.object_store_bytes=134217728",
        ]

    def command(self, name: str, *words: str, recipe: str = "quickstart") -> list[str]:
        """`rethinker train` with the shipped quickstart, or what builds on it, in small."""
        run = [f"run.name={name}", f"run.dir={self.folder}/runs/{name}"]
        return [sys.executable, "-m", "cluster", "train", str(ROOT / f"conf/experiment/{recipe}.yaml"), *self.overrides, *run, *words]

    def run_folder(self, name: str) -> Path:
        """Where that command leaves its results."""
        return self.folder / "runs" / name


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Workshop:
    """The quickstart's data, in a folder of the test session, which its workers share; names of runs are of one test file each."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "workshop"
    folder.mkdir(exist_ok=True)
    return Workshop(folder)


@pytest.fixture(scope="session")
def train(workshop: Workshop) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command to its end, and see that no process and no temporary file of it is left."""

    def run(name: str, *words: str, recipe: str = "quickstart") -> subprocess.CompletedProcess[str]:
        command = workshop.command(name, *words, recipe=recipe)
        temporary = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: sockets lie below it
        environment = clean_environment() | {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}  # Ray keeps the logs of its sessions there
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started = Descendants(process.pid)
        over = threading.Event()
        measuring = threading.Thread(target=lambda: workshop.peaks.__setitem__(name, started.peak_bytes(over)))
        measuring.start()
        try:
            output, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
        finally:
            process.kill()
            over.set()
            measuring.join()
        started.must_be_gone()
        left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]  # torch's cache, one a user
        assert not left, f"the run left {left} in the temporary folder"
        shutil.rmtree(temporary)
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    return run


@pytest.fixture(scope="session")
def cold_start(workshop: Workshop) -> Path:
    """The model that runs start from, which answers some questions; its data lie beside it, in the workshop's folder."""
    made = workshop.folder / "coldstart.txt"
    with FileLock(workshop.folder / "coldstart.lock", timeout=COMMAND_TIMEOUT_S):  # the first worker makes it, the others wait
        if not made.exists():
            command = [sys.executable, "-m", "cluster", "coldstart", "quickstart", *workshop.overrides]
            done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
            assert done.returncode == 0, done.stdout + done.stderr
            made.write_text(done.stdout.splitlines()[-1])
    return Path(made.read_text())


@pytest.fixture(scope="session")
def asynchronous_run(workshop: Workshop, train, cold_start) -> tuple[Path, str]:
    """Two rollout actors, two ranks with ZeRO-2, two updates a step, replay across versions, two versions ahead."""
    result = train(
        "async",
        "rollout.num_actors=2",
        "learner.num_ranks=2",
        "learner.zero_stage=2",
        "algorithm.updates_per_step=2",
        "algorithm.max_staleness=2",
        "replay.mode=fresh",
        "run.num_steps=6",
        "cluster.num_cpus=4",
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return workshop.run_folder("async"), result.stdout


def interrupted(command: list[str], *, when: Callable[[str], bool], timeout_s: float = 300.0) -> str:
    """Run a command, press Ctrl-C, and see that it ends with exit code 130 in the time promised and with all its processes.

    The signal goes to the whole process group, as a terminal's does.

    Args:
        command: that is to be interrupted.
        when: asked of every line of its output, and of an empty one several times a second.
        timeout_s: for that moment to come.

    Returns:
        What it wrote.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    started = Descendants(process.pid)
    written: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: written.extend(iter(process.stdout.readline, "")))
    reading.start()
    try:
        deadline, seen = time.monotonic() + timeout_s, 0
        while True:
            line = written[seen] if seen < len(written) else ""
            if when(line):
                break
            if line:
                seen += 1
                continue
            assert process.poll() is None, "".join(written)
            assert time.monotonic() < deadline, f"nothing to interrupt within {timeout_s} s: {''.join(written)}"
            time.sleep(0.02)
        assert {"raylet", "gcs_server"} <= {role.name() for role in started.alive()}  # what must be gone later is seen now
        os.killpg(process.pid, signal.SIGINT)
        begin = time.monotonic()
        process.wait(60)
        assert time.monotonic() - begin < INTERRUPTION_S, f"Ctrl-C took {time.monotonic() - begin:.1f} s"
    finally:
        process.kill()
        reading.join(30)
    started.must_be_gone(grace_s=max(0.0, INTERRUPTION_S - (time.monotonic() - begin)))
    assert process.returncode == 130, "".join(written)
    return "".join(written)


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment() -> dict[str, str]:
    """The environment without another test's cluster, with the marks by which its processes are found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = [*filter(None, kept.get("PYTHONPATH", "").split(os.pathsep)), grader_mark()]
    return kept | EVEN | {MARK: str(os.getpid()), "PYTHONPATH": os.pathsep.join(path)}


def grader_mark() -> str:
    """A folder that isn't there, in the search path of these tests' commands, which their graders inherit."""
    return f"/nowhere/{MARK}-{os.getpid()}"


class Descendants:
    """Processes of a run: they are recognised by a word in their environment, since Ray's daemons leave the process tree.

    Graders get a clean environment, of which the search path is the command's.

    Args:
        pid: of the command.
    """

    def __init__(self, pid: int) -> None:
        self._before = {process.pid for process in psutil.process_iter()} - {pid}

    def alive(self) -> list[psutil.Process]:
        """Living processes of these tests that were not there before."""
        found = []
        for process in psutil.process_iter(["pid", "status", "environ"]):
            environment = process.info["environ"] or {}
            ours = environment.get(MARK) == str(os.getpid()) or grader_mark() in environment.get("PYTHONPATH", "").split(os.pathsep)
            if ours and process.info["pid"] not in self._before and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def such(self, condition: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        """Those of the living that are so; who is gone before it was asked is none of them."""
        found = []
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                if condition(process):
                    found.append(process)
        return found

    def peak_bytes(self, over: threading.Event) -> int:
        """The most memory that they were seen with until then, what they share counted once."""
        peak = 0
        while not over.wait(MEASURE_EVERY_S):
            together = 0
            for process in self.alive():
                with contextlib.suppress(psutil.Error):  # gone in the meantime
                    together += process.memory_full_info().pss
            peak = max(peak, together)
        return peak

    def must_be_gone(self, *, grace_s: float = 5.0) -> None:
        """Fail when one of them outlives the command by more than the grace."""
        _, alive = psutil.wait_procs(self.alive(), timeout=grace_s)
        assert not alive, f"left behind: {[(process.pid, process.name()) for process in alive]}"
