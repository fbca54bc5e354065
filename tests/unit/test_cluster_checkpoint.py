"""A checkpoint is whole or not there, whatever ends the process in which part of its writing; which ones stay; and a full disk."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys
from pathlib import Path

from algorithms.schema import to_record_batch
from cluster.checkpoint import CheckpointWriter
from cluster.run_folder import RunFolder, kept_checkpoints
from conf.loading import load_config
from conf.schema import CheckpointConfig, ReplayConfig, ReplayMode
from learner.group import LearnerGroupError
from replay.buffer import ReplayBuffer
from replay.snapshot import read_snapshot
from tests.fakes import make_group

ROOT = Path(__file__).parents[2]
CONFIG = load_config("quickstart", [])  # once, for all the processes that are forked below


class Call:
    """A method of an actor's handle."""

    def __init__(self, method) -> None:
        self.remote = method


class SnapshotReplay:
    """ReplayActor's snapshots without Ray, over the real buffer."""

    def __init__(self, groups: int) -> None:
        self.buffer = ReplayBuffer(ReplayConfig(mode=ReplayMode.fresh), seed=0)
        for number in range(groups):
            self.buffer.insert(to_record_batch(make_group(f"p{number}", rewards=[1, 0]).trajectories))
        self.begin_snapshot, self.write_snapshot = Call(self._begin), Call(self._write)

    async def _begin(self) -> None:
        self._captured = self.buffer.capture()

    async def _write(self, folder: str) -> None:
        from replay.snapshot import write_snapshot

        write_snapshot(folder, self._captured)


class FileGroup:
    """A learner group whose state is a number, in files of two ranks."""

    def __init__(self) -> None:
        self.number = 0
        self.failure: Exception | None = None

    async def begin_checkpoint(self, folder: str) -> None:
        self._folder, self._copied = Path(folder), self.number

    async def finish_checkpoint(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._folder.mkdir()
        for rank in range(2):
            (self._folder / f"rank-{rank}").write_text(f"{self._copied} " * 50)


class Surviving:
    """LastingLearner's side of it."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int]] = []

    async def survive(self, call):
        return await call()

    def covered(self, checkpoint: Path, *, steps: int) -> None:
        self.noted.append((checkpoint.name, steps))


class Clock:
    """The controller's state between two steps."""

    def __init__(self, replay) -> None:
        self.step, self.replay, self.learner, self.config = 0, replay, Surviving(), CONFIG

    def state(self):
        return {"step": self.step, "ledger": [self.step] * 3}


def writer_in(folder: Path, *, flush=lambda: None, **settings):
    """A writer over real files, and its parts."""
    run = RunFolder(folder)
    run.open(resume=False, overwrite=False)
    clock, group, said = Clock(SnapshotReplay(3)), FileGroup(), []
    writer = CheckpointWriter(run, clock, group, CheckpointConfig(**settings), flush=flush, say=said.append)
    return run, clock, group, said, writer


async def step_and_take(clock, group, writer, *, step: int, accuracy: float | None = None) -> None:
    clock.step = group.number = step
    await writer.take({}, accuracy=accuracy)


def check_whole(checkpoint: Path) -> int:
    """The step of a checkpoint, all of whose parts are of that step."""
    state = json.loads((checkpoint / "controller.json").read_text())
    step = state["step"]
    assert checkpoint.name == f"step-{step:06d}" and state["ledger"] == [step] * 3
    assert [(checkpoint / "learner" / f"rank-{rank}").read_text() for rank in range(2)] == [f"{step} " * 50] * 2
    assert len(read_snapshot(checkpoint / "replay").waiting) == 3
    return step


# -- killed in the midst of writing ----------------------------------------------------------------------------------

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.unit.test_cluster_checkpoint import step_and_take, writer_in

os.fsync = lambda handle: None  # what a killed process has written stays, with or without it; the disk would take a second each time
FILE_CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate")
watched, fatal, seen = "", -1, 0

def watch(event, arguments):
    global seen
    if watched and event in FILE_CALLS and watched in str(arguments):
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

async def write(folder):
    global watched
    run, clock, group, said, writer = writer_in(folder, keep_last=1)
    await step_and_take(clock, group, writer, step=1)
    await writer.settle()
    watched = str(folder)
    for step in (2, 2, 3):  # a step that is there already, as after going on from an older checkpoint, and a new one
        await step_and_take(clock, group, writer, step=step)
        await writer.settle()

sys.addaudithook(watch)
asyncio.run(write(Path(sys.argv[1]) / "whole"))
watched, operations = "", seen
for number in range(operations):
    if (child := os.fork()) == 0:
        fatal, seen = number, 0
        asyncio.run(write(Path(sys.argv[1]) / str(number)))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, number
print(operations)
"""


def test_killed_before_any_file_operation_the_newest_checkpoint_is_whole(tmp_path):
    """Three checkpoints beside one that was there, one kept: before each of their operations on files a process is killed."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    operations, steps = int(done.stdout), []
    for number in range(operations):
        run = RunFolder(tmp_path / str(number))
        run.config.touch()
        run.open(resume=True, overwrite=False)  # what the next process does first
        newest = run.newest_checkpoint()
        assert newest is not None, f"killed before operation {number}, it left no checkpoint"
        steps.append(check_whole(newest))
        assert {path.name[:5] for path in run.checkpoints.iterdir()} == {"step-"}
    assert operations > 40 and steps == sorted(steps) and set(steps) == {1, 2, 3}


# -- beside training -------------------------------------------------------------------------------------------------


def test_training_goes_on_while_the_disk_writes_and_the_checkpoint_is_of_before(tmp_path):
    run, clock, group, _, writer = writer_in(tmp_path)

    async def go():
        await step_and_take(clock, group, writer, step=1)
        clock.step = group.number = 2  # the next step is done before the disk has anything
        assert run.newest_checkpoint() is None
        await writer.settle()
        assert check_whole(run.newest_checkpoint()) == 1 and clock.learner.noted == [("step-000001", 1)]
        await step_and_take(clock, group, writer, step=3)
        await step_and_take(clock, group, writer, step=4)  # one at a time: it waits for the one before
        assert run.newest_checkpoint().name == "step-000003"
        await writer.settle()

    asyncio.run(go())
    assert [check_whole(path) for path in sorted(run.checkpoints.iterdir())] == [3, 4]


def test_the_best_stay_besides_the_last(tmp_path):
    run, clock, group, _, writer = writer_in(tmp_path, keep_last=1, keep_best=2)

    async def go():
        for step, accuracy in enumerate([0.2, 0.9, None, 0.5, 0.9, 0.1], start=1):
            await step_and_take(clock, group, writer, step=step, accuracy=accuracy)
        await writer.settle()

    asyncio.run(go())
    assert [check_whole(path) for path in sorted(run.checkpoints.iterdir())] == [2, 5, 6]


def test_of_equally_good_checkpoints_the_newer_stay():
    accuracies = dict(zip(map(Path, "abcde"), [0.5, 0.5, None, 0.5, 0.1], strict=True))
    assert kept_checkpoints(accuracies, keep_last=1, keep_best=2) == {Path("e"), Path("d"), Path("b")}
    assert kept_checkpoints(accuracies, keep_last=2, keep_best=0) == {Path("d"), Path("e")}


def test_a_role_that_dies_while_its_part_is_written_costs_that_checkpoint_alone(tmp_path):
    run, clock, group, said, writer = writer_in(tmp_path)

    async def go():
        group.failure = LearnerGroupError("learner rank 1 failed to write its checkpoint")
        await step_and_take(clock, group, writer, step=1)
        await writer.settle()
        group.failure = None
        await step_and_take(clock, group, writer, step=2)
        await writer.settle()

    asyncio.run(go())
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000002"] and not said and writer.paused is None


# -- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_pauses_checkpoints_and_says_so_once(tmp_path):
    run, clock, group, said, writer = writer_in(tmp_path)

    async def go():
        await step_and_take(clock, group, writer, step=1)
        await writer.settle()
        group.failure = OSError(errno.ENOSPC, "No space left on device")
        for step in (2, 3):
            await step_and_take(clock, group, writer, step=step)
            await writer.settle()
            assert check_whole(run.newest_checkpoint()) == 1 and len(list(run.checkpoints.iterdir())) == 1
        group.failure = None
        await step_and_take(clock, group, writer, step=4)
        await writer.settle()

    asyncio.run(go())
    assert check_whole(run.newest_checkpoint()) == 4 and writer.paused is None
    assert len(said) == 2 and "checkpoints are paused" in said[0] and "step-000001 stays the newest" in said[0] and "go on" in said[1]


def test_no_checkpoint_stands_for_steps_whose_metrics_wait_for_room(tmp_path):
    run, clock, group, said, writer = writer_in(tmp_path, flush=lambda: "No space left on device")
    asyncio.run(step_and_take(clock, group, writer, step=1))
    assert run.newest_checkpoint() is None and writer.paused and "there is none yet" in said[0]
