"""More than 200 hostile answers of every kind: none crashes or outlives its limit, each has a reason, and neighbours don't wait."""

import asyncio
import time
from collections import Counter

import pytest

from algorithms.types import AnswerType
from tasks.grading import GraderPool
from tasks.grading_worker import PLACES
from tests.hostile import hostile_responses

TIMEOUT_S = 0.25
RESPONSES = hostile_responses()
REASONS = {"different", "no_answer", "too_long", "timeout", "memory", "died"}
KINDS = {
    "free": AnswerType(),
    "number": AnswerType(kind="number", unit="cm", relative_tolerance=1e-6),
    "choice": AnswerType(kind="choice", options=("7.5", "\\frac{1}{3}", "\\sqrt{7}", "none of them", "-2")),
    "scored": AnswerType(kind="scored", scorer="tests.unit.test_tasks_hostile.half_of_the_length"),
}
GOLDS = {"free": "7777", "number": "7777", "choice": "C", "scored": "7777"}


def half_of_the_length(candidate: str, gold: str, data: object) -> float:
    return 0.5 if len(candidate) == len(gold) else 0.0


@pytest.fixture(scope="module")
def pool():
    pool = GraderPool(processes=2, timeout_s=TIMEOUT_S, memory_bytes=2 << 30)
    yield pool
    pool.close()


def test_there_are_enough_of_them():
    assert len(RESPONSES) >= 200
    assert len(set(RESPONSES.values())) == len(RESPONSES)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_wrong_with_a_counted_reason(pool, kind):
    names = list(RESPONSES) if kind in ("free", "scored") else list(RESPONSES)[::3]  # in between they take the same ways

    async def run():
        before = Counter(pool.counts)
        neighbours = ["\\boxed{\\frac{15554}{2}}", "\\boxed{\\sqrt{7}\\cdot 1}"]

        async def one(response):
            start = time.perf_counter()
            return await pool.grade(response, GOLDS[kind], KINDS[kind]), time.perf_counter() - start

        results = await asyncio.gather(*(one(response) for response in (RESPONSES[name] for name in names)))
        counted = Counter(pool.counts) - before
        # whatever they did to the processes, right answers are still right
        for _ in range(10):  # on a machine that does much else, they may pass a limit that is as short as this one
            after = await pool.grade_many([neighbours[kind == "choice"]] * 4, [GOLDS[kind]] * 4, KINDS[kind])
            if all(grade.reason != "timeout" for grade in after):
                break
        return results, after, counted

    results, after, counted = asyncio.run(run())
    grades = dict(zip(names, (grade for grade, _ in results), strict=True))
    for name, grade in grades.items():
        assert not grade.lenient and not grade.strict, name
        assert grade.reason in REASONS | {"partial"} or grade.reason.startswith("error:"), (name, grade.reason)
    assert counted.total() == len(names)
    assert kind == "scored" or all(grade.strict for grade in after), after
    assert kind != "free" or counted["timeout"] >= 20  # else the list has lost its teeth


def test_neighbours_of_hung_answers_are_answered_first():
    """Towers, more than there are places for slow answers, among ordinary ones, with a limit that none of them reaches."""

    async def run(pool):
        hung = [asyncio.create_task(pool.grade(f"\\boxed{{{base}^{{9^{{9^{{9}}}}}}}}", "3")) for base in range(13, 13 + 2 * PLACES + 2)]
        responses = [f"\\boxed{{\\frac{{{2 * number}}}{{2}}+{number}}}" for number in range(1000, 1030)]
        ordinary = await pool.grade_many(responses, [str(2 * number) for number in range(1000, 1030)])
        was_done = [task.done() for task in hung]
        pool.close()
        await asyncio.gather(*hung, return_exceptions=True)
        return ordinary, was_done

    ordinary, was_done = asyncio.run(run(GraderPool(processes=2, timeout_s=100.0, memory_bytes=2 << 30)))
    assert all(grade.strict for grade in ordinary)
    assert not any(was_done)
