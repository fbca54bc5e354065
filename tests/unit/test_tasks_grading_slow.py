"""Answers that take long: they hold up nobody, and are not lost for it. What ends here ends because a file appears, not at some time."""

import asyncio
import dataclasses
import json
import os
import signal
import time
from multiprocessing.connection import Pipe
from pathlib import Path

import psutil
import pytest

from algorithms.types import AnswerType
from tasks.grading import GraderPool
from tasks.grading_child import Child
from tasks.grading_worker import PLACES, Lanes

DEADLINE_S = 100.0
QUICK = AnswerType(kind="scored", scorer=f"{__name__}.quick")


def busy_until_there_is(candidate: str, gold: str, path: str) -> float:
    while not os.path.exists(path):
        pass
    return 1.0


def asleep_until_there_is(candidate: str, gold: str, path: str) -> float:
    while not os.path.exists(path):
        time.sleep(0.01)
    return 1.0


def busy_for(candidate: str, gold: str, seconds: float) -> float:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return 1.0


def quick(candidate: str, gold: str, data: object) -> float:
    return 1.0


def waiting_for(path: Path, scorer: str = "busy_until_there_is") -> AnswerType:
    return AnswerType(kind="scored", scorer=f"{__name__}.{scorer}", data=json.dumps(str(path)))


def slow_answers(pool, number, answer_type):
    return [asyncio.create_task(pool.grade(f"\\boxed{{slow {i}}}", "x", answer_type)) for i in range(number)]


async def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def pool():
    pool = GraderPool(processes=1, timeout_s=DEADLINE_S, memory_bytes=2 << 30)
    yield pool
    pool.close()


@pytest.mark.parametrize(("scorer", "number"), [("busy_until_there_is", 3 * PLACES), ("asleep_until_there_is", PLACES + 1)])
def test_more_slow_answers_than_there_are_places_hold_up_nobody_and_all_count(pool, tmp_path, scorer, number):
    async def run():
        slow = slow_answers(pool, number, waiting_for(tmp_path / "now", scorer))
        formulas = [f"\\boxed{{\\frac{{{2 * i}}}{{2}}}}" for i in range(20)]
        ordinary = await asyncio.wait_for(pool.grade_many(formulas, [str(i) for i in range(20)]), DEADLINE_S)
        ended = sum(task.done() for task in slow)
        (tmp_path / "now").touch()
        return ordinary, ended, await asyncio.wait_for(asyncio.gather(*slow), DEADLINE_S)

    ordinary, ended, slow = asyncio.run(run())
    assert ended == 0  # the ordinary ones, which came last, were all answered before
    assert all(grade.strict for grade in ordinary)
    assert [grade.reason for grade in slow] == ["equal"] * number


def test_a_process_never_has_more_children_than_it_may(pool, tmp_path):
    async def run():
        slow = slow_answers(pool, PLACES + 2, waiting_for(tmp_path / "now"))
        most = 0
        for i in range(30):
            await pool.grade(f"\\boxed{{{i}}}", "x", QUICK)
            most = max(most, len(psutil.Process(pool.pids[0]).children()))
        (tmp_path / "now").touch()
        await asyncio.gather(*slow)
        return most

    assert PLACES < asyncio.run(run()) <= PLACES + 4  # the slow ones, one at work, three ready


def test_slow_answers_outlive_their_process(pool, tmp_path):
    async def run():
        slow = slow_answers(pool, PLACES + 2, waiting_for(tmp_path / "now"))
        await pool.grade("\\boxed{0}", "x", QUICK)  # so that all of them are set aside or postponed
        os.kill(pool.pids[0], signal.SIGKILL)
        await until(lambda: pool.pids)
        await pool.grade("\\boxed{1}", "x", QUICK)
        (tmp_path / "now").touch()
        return await asyncio.gather(*slow)

    assert {grade.reason for grade in asyncio.run(run())} == {"equal"}


def request(number, answer_type, **values):
    asked = {"id": number, "slow": False, "candidate": "x", "gold": "x", "form": "boxed", "answer_type": dataclasses.asdict(answer_type)}
    return asked | values


def test_a_slow_answer_neither_starves_nor_times_out_while_others_come_without_a_pause():
    limit_s, needs_s = 1.0, 0.05
    (asked, requests), (replies, told) = Pipe(duplex=False), Pipe(duplex=False)
    lanes = Lanes(asked, told, timeout_s=limit_s, memory_bytes=2 << 30)
    reasons = {}
    try:
        scorer = AnswerType(kind="scored", scorer=f"{__name__}.busy_for", data=str(needs_s))
        requests.send_bytes(json.dumps(request(0, scorer, slow=True)).encode())
        number, begin = 0, time.monotonic()
        while 0 not in reasons:
            assert time.monotonic() - begin < DEADLINE_S
            while number - len(reasons) < 5:  # the next one is always there already
                number += 1
                requests.send_bytes(json.dumps(request(number, QUICK)).encode())
            lanes.step()
            while replies.poll():
                reply = json.loads(replies.recv_bytes())
                reasons[reply["id"]] = reply["reason"]
    finally:
        lanes.close()
    assert set(reasons.values()) == {"equal"}


def test_time_in_which_an_answer_gives_way_is_not_counted(tmp_path):
    message = request(1, waiting_for(tmp_path / "now"))
    child = Child(2 << 30, close=[])
    try:
        (process,) = (found for found in psutil.Process().children() if found.pid == child._pid)
        child.ask(message, json.dumps(message).encode())
        asyncio.run(until(lambda: child.processor_s() > 0.02))
        child.let_run(False)
        asyncio.run(until(lambda: process.status() == psutil.STATUS_STOPPED))
        taken_s, had_s = child.processor_s(), child.had_s()
        time.sleep(0.05)
        assert (child.processor_s(), child.had_s()) == (taken_s, had_s)
        assert child.gave_way_s() >= 0.05
        child.let_run(True)
        asyncio.run(until(lambda: child.processor_s() > taken_s + 0.02))
        assert child.had_s() > had_s
        (tmp_path / "now").touch()
        assert child.answer() == ("equal", 1.0)
    finally:
        child.kill()


def test_a_child_without_memory_for_its_rehearsal_is_still_there_for_an_answer():
    def rehearse():
        raise MemoryError

    child = Child(2 << 30, close=[], rehearse=rehearse)
    try:
        asked = request(1, QUICK)
        child.ask(asked, json.dumps(asked).encode())
        assert child.pipe.poll(DEADLINE_S) and child.answer() == ("equal", 1.0)
    finally:
        child.kill()
