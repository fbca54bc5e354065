"""The desk, the file that leads to it, and what is left of a dead actor."""

import asyncio
import io
import json
import os
import socket
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from rich.console import Console
from typer.testing import CliRunner

from cluster import contact
from cluster.cli import app
from cluster.contact import find, sign_off
from cluster.deaths import cause_of, last_lines
from cluster.desk import Desk, DeskClerk
from cluster.run_commands import print_status
from cluster.run_folder import RunFolder, RunUnreachable, write_json


class LocalDesk:
    """A desk that is called as a handle is called."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.away = False

    @property
    def exchange(self):
        return self

    def remote(self, status, answers):
        async def call():
            if self.away:
                raise ActorDiedError
            return self.desk.exchange(status, answers)

        return call()


def refuse(values):
    raise ValueError("not now")


def test_requests_are_carried_out_once_and_answered():
    local, done = LocalDesk(), []
    clerk = DeskClerk(local, lambda: {"step": 3}, {"scale": lambda values: done.append(values) or "scaled", "stop": refuse})  # type: ignore[arg-type]
    desk = local.desk
    assert desk.look() == {"status": None, "age_s": None}
    scale, stop, unknown = desk.ask("scale", {"rollouts": 2}), desk.ask("stop", {}), desk.ask("dance", {})
    assert desk.answer(scale)["answer"] is None
    asyncio.run(clerk.post())
    asyncio.run(clerk.post())
    assert done == [{"rollouts": 2}]
    assert desk.answer(scale)["answer"] == "scaled" and not desk.answer(scale)["refused"]
    assert desk.answer(stop)["answer"] == "not now" and desk.answer(stop)["refused"]
    assert desk.answer(unknown)["answer"] == "this run can't dance" and desk.answer(unknown)["refused"]
    assert desk.look()["status"] == {"step": 3} and desk.look()["age_s"] < 5
    assert desk.answer(99) is None


def test_a_desk_that_is_away_costs_a_warning_and_no_answer(caplog):
    local = LocalDesk()
    clerk = DeskClerk(local, dict, {"stop": lambda values: "stopping"})  # type: ignore[arg-type]
    number = local.desk.ask("stop", {})
    local.away = True
    asyncio.run(clerk.post())
    asyncio.run(clerk.post())
    assert caplog.text.count("not exchanged for now") == 1
    local.away = False
    asyncio.run(clerk.post())
    assert local.desk.answer(number)["answer"] == "stopping"


def test_old_answers_are_forgotten():
    desk = Desk()
    numbers = [desk.ask("stop", {}) for _ in range(200)]
    desk.exchange({}, dict.fromkeys(numbers, ("done", False)))
    assert desk.answer(numbers[0]) is None and desk.answer(numbers[-1])["answer"] == "done"


def announce(folder: Path, **values) -> None:
    folder.mkdir(exist_ok=True)
    said = {"run": "mine", "address": "10.0.0.1:6379", "host": socket.gethostname(), "pid": os.getpid(), "ended": None}
    write_json(folder / "cluster.json", said | values)


def test_a_run_folder_leads_to_its_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    announce(tmp_path)
    assert find(str(tmp_path), None).address == "10.0.0.1:6379"
    assert find(str(tmp_path), "other:1").address == "other:1"
    assert find("mine", "10.0.0.1:6379").run == "mine"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    assert find("mine", None).address == "10.0.0.9:6379"


def test_who_cannot_be_reached_is_told_why(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RunUnreachable, match="nowhere is no run folder; name one, or give a run's name together with --address"):
        find("nowhere", None)
    announce(tmp_path)
    sign_off(RunFolder(tmp_path), "finished")
    with pytest.raises(RunUnreachable, match=r"is over \(finished, .*run.resume=true"):
        find(str(tmp_path), None)
    announce(tmp_path, pid=2**22 + 1)
    with pytest.raises(RunUnreachable, match=r"was killed: its driver, pid \d+, is gone"):
        find(str(tmp_path), None)
    (tmp_path / "cluster.json").unlink()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunUnreachable, match="holds a run that is not running"):
        find(str(tmp_path), None)


def test_a_cluster_where_nobody_listens_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(RunUnreachable, match=f"the cluster at 127.0.0.1:{port} is not reachable: .*refused"),
        contact.connected_to(contact.Contact(run="mine", address=f"127.0.0.1:{port}")),
    ):
        pass


RAYS_WORDS = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tpid: 7635\nThe actor is dead because its worker process"
    " has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
    " Some common causes include: (1) the process was killed by the OOM killer"
)


def test_the_cause_is_one_line_out_of_ray_s_many():
    error = ActorDiedError()
    error.error_msg = RAYS_WORDS
    assert cause_of(error) == ("its process ended (SYSTEM_ERROR: Worker unexpectedly exits with a connection error code 2. End of file)")
    error.error_msg = "The actor died unexpectedly before finishing this task.\nThe actor is dead because its node has died. Node Id: ab"
    assert cause_of(error) == "its node has died. Node Id: ab"
    task_error = RayTaskError("f", "Traceback ...\nValueError: b", ValueError("first line\nsecond"))
    assert cause_of(task_error.as_instanceof_cause()) == "first line"
    assert cause_of(ValueError()) == "ValueError()"


def test_the_last_lines_are_those_of_the_stream_that_was_written_last(tmp_path):
    for suffix, when in (("out", 100), ("err", 200)):
        path = tmp_path / f"worker-ab-01-7.{suffix}"
        path.write_text(":job_id:01\n" + "".join(f"{suffix} {i}\n\n" for i in range(50)))
        os.utime(path, (when, when))
    (tmp_path / "worker-ab-01-77.err").write_text("another process\n")
    assert last_lines(tmp_path, "ab", 7, 3) == ["err 47", "err 48", "err 49"]
    assert last_lines(tmp_path, "cd", 7, 3) == []
    assert json.dumps(last_lines(tmp_path, "ab", 7, 100))


STATUS = {
    "run": "mine", "phase": "training", "step": 3, "num_steps": 9, "age_s": 12.0,
    "rollouts": {"in_service": 1, "target": 2, "starting": 1, "leaving": 0},
    "roles": [{"kind": "rollout", "rank": 0, "state": "suspect", "since": 0.0, "version": 7, "restarts": 4, "reason": "3 heartbeats"}],
    "notices": ["rollout 1: 1 x 8 GPUs wanted; free are 10.0.0.1: nothing"],
    "deaths": [{"role": "rollout actor 7", "cause": "killed", "time": 0.0}],
}  # fmt: skip


def test_people_see_states_notices_deaths_and_silence():
    console = Console(record=True, width=160, file=io.StringIO())
    print_status(STATUS, console)
    told = console.export_text()
    for words in ("mine  training  step 3/9", "1 in service, 2 wanted, 1 starting", "rollout 0", "suspect", "3 heartbeats"):
        assert words in told
    assert STATUS["notices"][0] in told
    assert "rollout actor 7 died: killed" in told and "the driver has said nothing for 12 s" in told


@pytest.mark.parametrize("words", [["status", "nowhere"], ["scale", "nowhere", "--rollouts", "2"], ["stop", "nowhere"]])
def test_a_command_without_a_run_is_one_sentence_and_exit_code_2(words, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "nowhere is no run folder" in result.stderr
