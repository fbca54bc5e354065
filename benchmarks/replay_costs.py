"""What the replay costs in one process: draws and updates by table size, restore time, memory over payload; no peers.

python -m benchmarks.replay_costs --plot docs/pictures/replay_costs.png
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from algorithms.schema import to_record_batch
from benchmarks.report import conditions
from conf.schema import ReplayConfig, ReplayMode, ReplayRemover
from replay.buffer import ReplayBuffer
from replay.durable import DurableReplay
from replay.priority_tree import PriorityTree
from replay.requests import SampleRequest
from replay.selectors import Prioritized
from tests.fakes import make_trajectory

SIZES = (1_000, 10_000, 100_000, 1_000_000)
BATCH = 256
FEW = 16  # rows of a call that share next to no nodes, not even in the smallest table
TABLE = 25_600  # rows, when memory is measured
ITEM_TOKENS = 2000  # 16 KB of token ids and log-probs


def median_us(call: Callable[[], object], rounds: int = 7, calls: int = 60) -> float:
    """Median over rounds of the mean microseconds of processor time of a call, which other work on the machine changes least."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(calls):
            call()
        found.append((time.process_time() - begin) / calls * 1e6)
    return statistics.median(found)


def tree_growth(batch: int) -> Iterator[tuple[float, float]]:
    """Microseconds of drawing and of updating rows in the tree of priorities alone, by table size."""
    rng = np.random.default_rng(0)
    for size in SIZES:
        tree, versions = PriorityTree(Prioritized(exponent=0.6, decay=500.0)), rng.integers(0, 1000, size)
        tree.enter(np.arange(size), rng.random(size), versions)
        used = np.zeros(size, dtype=np.int64)
        chosen = chosen_rows(rng, size, batch)
        values = rng.random(batch)

        def update(
            tree: PriorityTree = tree, chosen: Iterator[NDArray] = chosen, values: NDArray = values, versions: NDArray = versions
        ) -> None:
            places = next(chosen)
            tree.enter(places, values, versions[places])

        yield median_us(lambda tree=tree, used=used: tree.draw(rng, batch, used)), median_us(update)


def buffer_growth(*batches: int) -> Iterator[tuple[float, ...]]:
    """Microseconds of drawing and of updating rows in a replay buffer, by table size: for each batch the one and then the other."""
    rng = np.random.default_rng(0)
    for size in SIZES:
        buffer = ReplayBuffer(ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=size, max_bytes=64 * 2**30), seed=0)
        for rows in inserts(500, size // 500, response_tokens=2):
            buffer.insert(rows)
        gc.collect()
        gc.freeze()  # else the collector walks through what a large table has of Python's objects, now and then and in any call
        found = []
        for batch in batches:
            keys, values, request = chosen_rows(rng, size, batch), rng.random(batch), SampleRequest(batch_size=batch)
            found.append(median_us(lambda buffer=buffer, request=request: buffer.draw(request)))
            found.append(median_us(lambda buffer=buffer, keys=keys, values=values: buffer.update_priorities(next(keys), values)))
        yield tuple(found)
        del buffer
        gc.unfreeze()


def chosen_rows(rng: np.random.Generator, size: int, batch: int) -> Iterator[NDArray]:
    """Rows to update, never the same ones twice in a row."""
    return itertools.cycle([rng.choice(size, batch, replace=False) for _ in range(60)])


def inserts(batch: int, num: int, response_tokens: int = ITEM_TOKENS) -> Iterator[pa.RecordBatch]:
    """Batches of trajectories of 16 KiB or less, each batch a group of its own, with any advantages."""
    rng = np.random.default_rng(0)
    base = to_record_batch([make_trajectory(prompt_id="p", index=i, response_tokens=response_tokens) for i in range(batch)])
    at = base.schema.get_field_index("advantage")
    for i in range(num):
        columns = base.columns
        columns[0] = pa.array([f"p{i}@0/{j}" for j in range(batch)])
        columns[1] = pa.array([f"p{i}@0"] * batch)
        columns[at] = pa.array(rng.random(batch) - 0.5, type=base.schema.field(at).type)
        yield pa.RecordBatch.from_arrays(columns, schema=base.schema)


def restore(num: int) -> dict[str, float]:
    """Seconds to recover trajectories of 16 KiB from a journal and from a base."""
    config = ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=num, max_bytes=64 * 2**30)
    with tempfile.TemporaryDirectory() as folder:
        replay = DurableReplay(config, seed=0, folder=folder)
        for batch in inserts(BATCH, num // BATCH):
            replay.insert(batch)
        replay.close()
        rows, payload = len(replay.buffer), replay.buffer.stats()["bytes"]
        del replay
        gc.collect()
        begin = time.perf_counter()
        again = DurableReplay(config, seed=0, folder=folder)
        from_journal = time.perf_counter() - begin
        again.finish_compaction(again.begin_compaction())
        again.close()
        del again
        gc.collect()
        begin = time.perf_counter()
        third = DurableReplay(config, seed=0, folder=folder)
        from_base = time.perf_counter() - begin
        assert len(third.buffer) == rows
        third.close()
    return {"rows": rows, "payload_gb": payload / 1e9, "journal_s": from_journal, "base_s": from_base}


def memory(passed: int, batch: int, remover: ReplayRemover) -> tuple[float, float, float]:
    """Let rows pass through a table of TABLE rows, with a journal.

    Args:
        passed: how many.
        batch: rows of an insert.
        remover: lets them go.

    Returns:
        By how much resident bytes are above those that the buffer says it holds, and above those of the rows that are there, in the
        end; and the former at its worst.
    """
    config = ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=TABLE, max_bytes=64 * 2**30, remover=remover)
    process, worst = psutil.Process(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for rows in inserts(8, 2):  # what a first use takes once isn't the rows'
            with tempfile.TemporaryDirectory() as other:
                DurableReplay(config, seed=0, folder=other).insert(rows)
        arriving = inserts(batch, passed // batch)
        first = next(arriving)
        gc.collect()
        before = process.memory_info().rss
        replay = DurableReplay(config, seed=0, folder=folder)
        for i, rows in enumerate(itertools.chain([first], arriving)):
            replay.insert(rows)
            if replay.wants_compaction:
                replay.finish_compaction(replay.begin_compaction())
            if i * batch >= TABLE and i % 16 == 0:
                worst = max(worst, (process.memory_info().rss - before) / replay.buffer.stats()["bytes"] - 1)
        gc.collect()
        resident = process.memory_info().rss - before
        held, rows_bytes = replay.buffer.stats()["bytes"], replay.buffer.capture().storage.num_bytes
        replay.close()
    return resident / held - 1, resident / rows_bytes - 1, worst


def print_memory(passed: int) -> None:
    """Measure memory, each case in a process of its own, and print Markdown."""
    print("\n| rows an insert | remover | over what is held | over the rows | at worst |\n|---|---|---|---|---|")
    for batch, remover in itertools.product((1024, 256, 8), (ReplayRemover.oldest, ReplayRemover.lowest_priority)):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            shares = process.apply(memory, (passed, batch, remover))
        print(f"| {batch:,} | {remover.value} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


def plot(found: list[tuple[float, ...]], path: Path) -> None:
    """Draw costs over sizes, with a line that grows with log n."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for column, name in enumerate((f"draw {BATCH}", f"update {BATCH}", f"draw {FEW}", f"update {FEW}")):
        costs = [row[column] for row in found]
        (line,) = axes.plot(SIZES, costs, marker="o", label=name)
        growing = [costs[0] * np.log(size) / np.log(SIZES[0]) for size in SIZES]
        axes.plot(SIZES, growing, linestyle=":", color=line.get_color(), label="growing with log n" if column == 0 else None)
    axes.set(xscale="log", xlabel="trajectories in the table", ylabel="microseconds", ylim=(0, None))
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure by table size, print Markdown and draw the plot that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--trajectories", type=int, default=100_000)
    arguments = parser.parse_args()
    found = list(buffer_growth(BATCH, FEW))
    print(conditions("python -m benchmarks.replay_costs"))
    heads = [f"draw {BATCH}", f"update {BATCH}", f"draw {FEW}", f"update {FEW}", f"tree alone: draw {BATCH}", f"update {BATCH}"]
    print(f"\n| trajectories | {' | '.join(heads)} |\n" + "|---" * (1 + len(heads)) + "|")
    for size, row, of_tree in zip(SIZES, found, tree_growth(BATCH), strict=True):
        print(f"| {size:,} | " + " | ".join(f"{cost:.0f} us" for cost in (*row, *of_tree)) + " |")
    if arguments.plot:
        plot(found, arguments.plot)
    if arguments.trajectories:
        print({name: round(value, 3) for name, value in restore(arguments.trajectories).items()})
        print_memory(arguments.trajectories)


if __name__ == "__main__":
    main()
