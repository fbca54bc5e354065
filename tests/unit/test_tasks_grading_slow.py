"""Answers that take long: they hold up nobody, and are not lost for it. What ends here ends because a file appears, not at some time."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from algorithms.types import AnswerType
from tasks.grading import GraderPool
from tasks.grading_child import Child
from tasks.grading_worker import PLACES

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

    assert PLACES < asyncio.run(run()) <= PLACES + 3  # the slow ones, one at work, two ready


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


def test_a_slow_answer_neither_starves_nor_times_out_while_others_come_without_a_pause():
    limit_s = 0.6

    async def run(pool):
        needs = AnswerType(kind="scored", scorer=f"{__name__}.busy_for", data=str(limit_s / 6))
        slow = asyncio.create_task(pool.grade("\\boxed{slow}", "x", needs))
        answered = 0

        async def stream(name):
            nonlocal answered
            while not slow.done():
                answered += (await pool.grade(f"\\boxed{{{name} {answered}}}", "x", QUICK)).strict

        await asyncio.wait_for(asyncio.gather(*(stream(name) for name in range(8))), DEADLINE_S)
        return await slow, answered

    pool = GraderPool(processes=1, timeout_s=limit_s, memory_bytes=2 << 30)
    try:
        grade, answered = asyncio.run(run(pool))
    finally:
        pool.close()
    assert grade.reason == "equal" and answered > 20


def test_time_in_which_an_answer_gives_way_is_not_counted(tmp_path):
    answer_type = {"kind": "scored", "options": (), "scorer": f"{__name__}.busy_until_there_is", "data": json.dumps(str(tmp_path / "now"))}
    request = {"id": 1, "slow": False, "candidate": "x", "gold": "x", "form": "boxed", "answer_type": answer_type}
    child = Child(2 << 30, close=[])
    try:
        (process,) = (found for found in psutil.Process().children() if found.pid == child._pid)
        child.ask(request, json.dumps(request).encode())
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
