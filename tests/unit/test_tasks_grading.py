import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time

import pytest

from tasks.grading import Grade, GraderPool

HOSTILE = {
    "tower": ("\\boxed{9^{9^{9^{9}}}}", "timeout"),
    "sum": ("\\boxed{\\sum_{i=1}^{10000000000} \\sqrt{i}}", "timeout"),
    "latex": ("\\boxed{" + "\\frac{" * 160_000, "different"),
    "long box": ("\\boxed{" + "1+" * 500_000 + "1}", "too_long"),
    "unbalanced": ("\\boxed{" + "{" * 1_000_000, "different"),
    "unicode digits": ("\\boxed{\u0663}", "different"),
    "null bytes": ("\\boxed{\0\0\0}", "different"),
    "surrogate": ("\\boxed{\ud800}", "different"),
    "code": ("\\boxed{__import__('os').abort()}", "different"),
    "empty": ("", "no_answer"),
    "blank box": ("\\boxed{$$}", "no_answer"),
}


@pytest.fixture(scope="module")
def pool():
    pool = GraderPool(processes=1, timeout_s=1.0, memory_bytes=2 << 30)
    yield pool
    pool.close()


def grade(pool, response, gold):
    return asyncio.run(pool.grade(response, gold))


@pytest.mark.parametrize(
    ("response", "gold", "strict", "lenient"),
    [
        ("so \\boxed{\\frac{2}{4}}", "0.5", True, True),
        ("so \\boxed{Yes}", "yes", True, True),
        ("so \\boxed{no}", "yes", False, False),
        ("<answer>yes</answer>", "yes", False, True),
        ("Answer: 8.0", "8", False, True),
        ("The sum is 8", "8", False, True),
        ("No.", "no", False, True),
        ("\\boxed{7} Answer: 8", "8", False, False),
        ("\\boxed{B. blue}", "B", True, True),
        ("I choose B", "B", False, True),
    ],
)
def test_grades(pool, response, gold, strict, lenient):
    result = grade(pool, response, gold)
    assert (result.strict, result.lenient) == (strict, lenient)
    assert result.reason == ("equal" if lenient else "different")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_wrong_with_a_reason(pool, name):
    response, reason = HOSTILE[name]
    before = pool.counts[reason]
    start = time.perf_counter()
    assert grade(pool, response, "3") == Grade(strict=False, lenient=False, reason=reason)
    assert time.perf_counter() - start < 10
    assert pool.counts[reason] == before + 1
    assert grade(pool, "\\boxed{\\frac{6}{2}}", "3").strict


def test_a_hung_answer_costs_only_itself_and_never_the_event_loop(pool):
    async def run():
        longest, ticks = 0.0, 0

        async def tick():
            nonlocal longest, ticks
            while True:
                start = time.perf_counter()
                await asyncio.sleep(0.005)
                longest, ticks = max(longest, time.perf_counter() - start), ticks + 1

        ticker = asyncio.create_task(tick())
        responses = ["\\boxed{8^{8^{8^{8}}}}", *(f"\\boxed{{\\frac{{{2 * i}}}{{2}}}}" for i in range(20))]
        grades = await pool.grade_many(responses, ["3", *(str(i) for i in range(20))])
        ticker.cancel()
        return grades, longest, ticks

    grades, longest, ticks = asyncio.run(run())
    assert grades[0].reason == "timeout"
    assert all(result.strict for result in grades[1:])
    assert ticks > 50
    assert longest < 0.5


def test_the_same_comparison_of_a_group_runs_once(pool):
    async def run():
        start = time.perf_counter()
        grades = await pool.grade_many(["\\boxed{7^{7^{7^{7^{7}}}}}"] * 8, ["3"] * 8)
        return grades, time.perf_counter() - start

    grades, elapsed = asyncio.run(run())
    assert {result.reason for result in grades} == {"timeout"}
    assert elapsed < 4  # one time limit of a second, not eight


def test_a_waiter_that_is_cancelled_leaves_the_others_alone(pool):
    async def run():
        first, second = (asyncio.create_task(pool.grade("\\boxed{\\frac{22}{44}}", "0.500")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(run()).strict


def test_a_quickstart_step_is_graded_well_under_a_tenth_of_a_second(pool):
    rng = random.Random(0)
    answers = ["yes", "no", "circle", "blue", *(str(number) for number in range(-9, 82))]
    golds = [rng.choice(answers) for _ in range(64) for _ in range(8)]
    responses = [f"The digits are 3 and 5. 3+5=8. \\boxed{{{rng.choice([gold, rng.choice(answers)])}}}" for gold in golds]

    async def run():
        start = time.process_time()
        grades = await pool.grade_many(responses, golds)
        return grades, time.process_time() - start

    runs = [asyncio.run(run()) for _ in range(3)]
    assert 200 < sum(result.strict for result in runs[0][0]) < 400
    assert min(elapsed for _, elapsed in runs) < 0.1


def test_a_process_that_dies_is_replaced():
    pool = GraderPool(processes=1, timeout_s=5.0, memory_bytes=2 << 30)
    try:
        assert grade(pool, "\\boxed{\\frac{6}{2}}", "3").strict
        os.kill(pool.pids[0], signal.SIGKILL)
        assert grade(pool, "\\boxed{\\frac{9}{3}}", "3").strict  # asked again in its successor
        assert pool.counts == {"equal": 2}
    finally:
        pool.close()


def test_memory_is_limited_and_the_pool_goes_on():
    pool = GraderPool(processes=1, timeout_s=20.0, memory_bytes=16 << 20)  # below what the process already has: it gets no more
    try:
        start = time.perf_counter()
        result = grade(pool, "\\boxed{2^{10^{10}}}", "3")  # 1.25 GB, and minutes, where there is no limit
        assert time.perf_counter() - start < 15
        assert result.reason in ("memory", "died", "different")  # math-verify swallows some memory errors of its own
        assert not result.lenient
        assert grade(pool, "\\boxed{3}", "3").strict
    finally:
        pool.close()


def test_closing_ends_the_processes_and_refuses_more():
    pool = GraderPool(processes=2, timeout_s=1.0, memory_bytes=2 << 30)
    pids = pool.pids
    pool.close()
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        grade(pool, "\\boxed{\\frac{1}{2}}", "x")


def test_processes_end_with_their_owner():
    code = (
        "import asyncio, os\n"
        "from tasks.grading import GraderPool\n"
        "pool = GraderPool(processes=1, timeout_s=60, memory_bytes=2 << 30)\n"
        "asyncio.run(pool.grade('\\\\boxed{\\\\frac{1}{2}}', '0.5'))\n"
        "print(pool.pids[0], flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    try:
        watch = os.pidfd_open(int(ended.stdout))
    except ProcessLookupError:
        return
    assert select.select([watch], [], [], 20)[0], "the grader process outlived its owner"
    os.close(watch)


def test_settings_must_be_positive():
    with pytest.raises(ValueError, match="processes=0"):
        GraderPool(processes=0, timeout_s=1.0, memory_bytes=1)
