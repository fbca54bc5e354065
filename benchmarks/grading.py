"""How fast answers are graded, against calling math-verify in a loop in the same run.

    python -m benchmarks.grading

- mixed: what responses hold (numbers, words, letters, formulas), no two answers alike, so that the pool's cache has nothing to give
- formulas: only answers that need math-verify, the pool's worst case
- hung: the mixed answers with one in 100, and one in 20, that never ends; the same ordinary ones' latencies with and without them

The peers are math-verify's parse and verify as its documentation calls them, with its own time limit, in a loop in one process, and the
same loop in two. Rounds are interleaved, so that a machine that slows down slows all. Read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence

import psutil

from algorithms.types import AnswerType
from benchmarks.report import Series, conditions, table
from tasks.comparison import decide
from tasks.equivalence import normalized
from tasks.extraction import strict_answer
from tasks.grading import GraderPool

PROCESSES = 2
TIMEOUT_S = 5.0
Pair = tuple[str, str]  # response, gold


def formulas(number: int, *, seed: int) -> list[Pair]:
    """Answers that need algebra, half of them right."""
    rng = random.Random(seed)
    found = []
    for _ in range(number):
        a, b, c = rng.randint(2, 9999), rng.randint(2, 99), rng.randint(2, 99)
        gold, right = rng.choice(
            [
                (f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a * c}}}{{{b * c}}}"),
                (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}"),
                (f"x^2+{a}x+{b}", f"{b}+{a}x+x^2"),
                (f"({a}, {b})", f"({a},{b})"),
                (f"\\{{{a}, {b}\\}}", f"\\{{{b}, {a}\\}}"),
                (f"{a}\\pi", f"\\pi \\cdot {a}"),
            ]
        )
        wrong = right.replace(str(b), str(b + 1), 1) if str(b) in right else f"{right}+1"
        found.append((f"Let me see. So it is \\boxed{{{right if rng.random() < 0.5 else wrong}}}", gold))
    return found


def mixed(number: int, *, seed: int) -> list[Pair]:
    """Numbers, letters, words and formulas, as data sets of pictures with mathematics have them."""
    rng = random.Random(seed)
    words = ("circle", "triangle", "red", "north", "heart", "increasing", "yes", "no")
    found = formulas(number * 3 // 10, seed=seed)
    while len(found) < number:
        kind = rng.random()
        if kind < 0.55:
            gold = f"{rng.randint(-99999, 99999)}" if kind < 0.3 else f"{rng.uniform(0, 999):.2f}"
            answer = gold if rng.random() < 0.5 else f"{rng.randint(-99999, 99999)}"
        elif kind < 0.85:
            gold, answer = rng.choice("ABCDE"), rng.choice("ABCDE")
        else:
            gold, answer = rng.choice(words), rng.choice(words)
        found.append((f"In step {rng.randint(0, 10**9)} it follows that the answer is \\boxed{{{answer}}}.", gold))
    rng.shuffle(found)
    return found


def verify_one(pair: Pair) -> bool:
    """math-verify as its documentation calls it."""
    from math_verify import parse, verify

    response, gold = pair
    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(response)))


def in_a_loop(pairs: Sequence[Pair]) -> int:
    """The peer."""
    return sum(verify_one(pair) for pair in pairs)


async def _grade(pool: GraderPool, pairs: Sequence[Pair], answered: Callable[[Pair], None] = lambda pair: None) -> list[tuple[str, float]]:
    async def one(pair: Pair) -> tuple[str, float]:
        begin = time.perf_counter()
        reason = (await pool.grade(*pair)).reason
        answered(pair)
        return reason, time.perf_counter() - begin

    return list(await asyncio.gather(*(one(pair) for pair in pairs)))


def fresh_pool() -> GraderPool:
    """A pool without a cache's content, its processes loaded."""
    pool = GraderPool(processes=PROCESSES, timeout_s=TIMEOUT_S, memory_bytes=2 << 30)
    asyncio.run(pool.grade_many([f"\\boxed{{\\frac{{{n}}}{{{n + 1}}}}}" for n in range(2, 10)], ["x"] * 8))
    return pool


def rate(function: Callable[[], object], number: int) -> float:
    """Answers per second."""
    begin = time.perf_counter()
    function()
    return number / (time.perf_counter() - begin)


def throughput(name: str, make: Callable[..., list[Pair]], number: int, rounds: int, workers: multiprocessing.pool.Pool) -> None:
    """Compare the three contestants on new answers each round."""
    ours, loop, two = [], [], []
    agreed = []
    for seed in range(rounds):
        pairs = make(number, seed=seed)
        pool = fresh_pool()
        try:
            reasons: list[tuple[str, float]] = []
            ours.append(rate(lambda pool=pool, pairs=pairs, found=reasons: found.extend(asyncio.run(_grade(pool, pairs))), number))
        finally:
            pool.close()
        right: list[bool] = []
        loop.append(rate(lambda pairs=pairs, found=right: found.extend(map(verify_one, pairs)), number))
        two.append(rate(lambda pairs=pairs: workers.map(verify_one, pairs, chunksize=16), number))
        agreed.append(sum((reason == "equal") == same for (reason, _), same in zip(reasons, right, strict=True)) / number)
    pool_series = Series("grader pool, 2 processes", ours, "answers/s")
    print(table(f"{name}, {number} answers, against a loop", pool_series, Series("math-verify, one loop", loop, "answers/s")))
    print(table(f"{name}, {number} answers, against two loops", pool_series, Series("math-verify, two loops", two, "answers/s")))
    print(f"verdicts that agree: {statistics.mean(agreed):.2%}\n")


def processor_s(pool: GraderPool) -> float:
    """What a pool's processes and their children have taken of the processors; it depends little on what else the machine does."""
    taken = 0.0
    for pid in pool.pids:
        process = psutil.Process(pid)
        times = process.cpu_times()
        taken += times.user + times.system + times.children_user + times.children_system
        for child in process.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                taken += sum(child.cpu_times()[:2])
    return taken


def needs_a_process(pair: Pair) -> bool:
    """Whether an answer isn't decided on the spot."""
    response, gold = pair
    return decide(normalized(strict_answer(response) or ""), normalized(gold), AnswerType(), form="boxed") is None


def hung(number: int, rounds: int, every: int) -> None:
    """How long ordinary answers take with and without hung ones among them, the same ordinary ones, one after the other in turns."""
    kinds = ("without", "with")
    rows: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in kinds}
    ends: list[float] = []
    towers = range(every, number, every)
    for seed in range(rounds):
        for kind in kinds if seed % 2 else kinds[::-1]:
            pairs = mixed(number, seed=seed)
            for place in towers:
                pairs[place] = (f"\\boxed{{{place}^{{9^{{9^{{9}}}}}}}}", "3")
            asked = [index for index in range(number) if kind == "with" or index not in towers]
            pool = fresh_pool()
            waiting = {pairs[index] for index in asked if index not in towers}
            before, taken = processor_s(pool), 0.0

            def answered(pair: Pair, pool: GraderPool = pool, waiting: set[Pair] = waiting) -> None:
                nonlocal taken
                waiting.discard(pair)
                if not waiting and not taken:
                    taken = processor_s(pool)

            try:
                results = dict(zip(asked, asyncio.run(_grade(pool, [pairs[index] for index in asked], answered)), strict=True))
            finally:
                pool.close()
            ordinary = sorted(seconds for index, (_, seconds) in results.items() if index not in towers and needs_a_process(pairs[index]))
            assert all(results[place][0] == "timeout" for place in towers if place in results)
            ends += [results[place][1] for place in towers if place in results]
            rows[kind].append((statistics.median(ordinary), ordinary[int(0.99 * len(ordinary))], ordinary[-1], taken - before))
    print(f"### Latency of the formulas among {number - len(towers)} answers at once, and {len(towers)} hung ones (limit {TIMEOUT_S} s)\n")
    print("| | median | 99 % | longest | processor time until the last |\n|---|---|---|---|---|")
    columns = {kind: list(zip(*rows[kind], strict=True)) for kind in kinds}
    for kind in kinds:
        cells = (f"{statistics.median(column):.3f} s ({min(column):.3f} to {max(column):.3f})" for column in columns[kind])
        print(f"| {kind} hung answers | {' | '.join(cells)} |")
    pairs_of_columns = zip(columns["with"], columns["without"], strict=True)
    ratios = (f"{statistics.median(having) / statistics.median(lacking):.2f}" for having, lacking in pairs_of_columns)
    print(f"| ratio | {' | '.join(ratios)} |\n\nThe hung ones ended after {min(ends):.1f} to {max(ends):.1f} s, all as timeouts.\n")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hung-every", type=int, nargs="+", default=[100, 20], help="one answer in so many never ends")
    parser.add_argument("--only", choices=("throughput", "hung"), help="a part of it")
    arguments = parser.parse_args()
    if arguments.only != "hung":
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as workers:
            workers.map(verify_one, formulas(32, seed=99))  # loads it
            in_a_loop(formulas(16, seed=98))
            throughput("Mixed", mixed, arguments.answers, arguments.rounds, workers)
            throughput("Formulas only", formulas, arguments.answers, arguments.rounds, workers)
    if arguments.only != "throughput":
        for every in arguments.hung_every:
            hung(arguments.answers, arguments.rounds, every)
    print(conditions("python -m benchmarks.grading"))


if __name__ == "__main__":
    main()
