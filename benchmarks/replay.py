"""The replay actor against the replay services that others use, the contestants taking turns in one run.

    python -m benchmarks.replay --python torchrl=PATH --python reverb=PATH --rounds 5 --kib 16 --batch 256

A cell has items a second and then microseconds of processor time an item, over all processes of the contestant; the latter hardly depend
on what else the machine does. PATH is a Python in which the peer is installed; none of them is a dependency of this project. ``torchrl=``
serves RLlib as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import conditions

ROOT = Path(__file__).parents[1]
NAMES = (
    *("floor", "disk", "disk:over", "ours", "ours:client", "ours:journal", "ours:client+journal"),
    *("torchrl", "torchrl:uniform", "transferqueue", "reverb"),
    *("ours:local", "torchrl:local", "rllib"),
)
VERBS = ("insert", "sample", "update")


class Contestant:
    """A process that measures itself when told to."""

    def __init__(self, name: str, python: str, kib: float, folder: str) -> None:
        self.name = name
        own = name.startswith(("ours", "floor", "disk"))
        words = [python, *(("-m", "benchmarks.replay_contestants") if own else ("benchmarks/replay_contestants.py",))]
        self._process = subprocess.Popen(
            [*words, name, str(kib), folder],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._read("READY")

    def measure(self, verb: str, batch: int, seconds: float, writers: int) -> tuple[float, float] | None:
        """Items a second, and microseconds of processor time an item; None: the contestant has no such verb."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, "batch": batch, "seconds": seconds, "writers": writers}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read("RATE"))

    def close(self) -> None:
        """End it, and its cluster with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip() or "null"
        raise RuntimeError(f"{self.name} ended without an answer")


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 1
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def measured(arguments: argparse.Namespace, pythons: dict[str, str], folder: str) -> dict[tuple[str, str, int], list[tuple[float, float]]]:
    """Let the contestants take turns; items a second and microseconds an item of each counted round, by name, verb and batch."""
    contestants: dict[str, Contestant] = {}
    rates: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    try:
        for round_number in range(arguments.rounds + 1):  # the first one warms up and is not counted
            for name in chosen(arguments, pythons):
                if name not in contestants:
                    contestants[name] = Contestant(name, pythons[name.split(":")[0]], arguments.kib, folder)
                for batch, verb in itertools.product(arguments.batch, arguments.verbs):
                    begin = time.monotonic()
                    rate = contestants[name].measure(verb, batch, arguments.seconds, arguments.writers)
                    print(
                        f"round {round_number}: {name} {verb} {batch}: {rate}, {time.monotonic() - begin:.1f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                    if rate is not None and round_number:
                        rates.setdefault((name, verb, batch), []).append(rate)
    finally:
        for contestant in contestants.values():
            contestant.close()
    return rates


def chosen(arguments: argparse.Namespace, pythons: dict[str, str]) -> list[str]:
    """The contestants that were asked for and have a Python."""
    return [name for name in arguments.only if pythons.get(name.split(":")[0])]


def main() -> None:
    """Let the chosen contestants take turns and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="NAME=PATH of a peer's Python")
    parser.add_argument("--only", nargs="*", default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--kib", type=float, default=16.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[256])
    parser.add_argument("--writers", type=int, default=1, help="processes that insert at the same time")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS))
    parser.add_argument("--journal", help="folder in which there is one for the journals meanwhile; none: the system's for temporary files")
    arguments = parser.parse_args()
    pythons = dict(entry.split("=", 1) for entry in arguments.python)
    pythons |= dict.fromkeys(("ours", "floor", "disk"), sys.executable)
    pythons["rllib"] = pythons.get("rllib", pythons.get("torchrl", ""))
    with tempfile.TemporaryDirectory(prefix="replay-journal-", dir=arguments.journal, ignore_cleanup_errors=True) as folder:
        rates = measured(arguments, pythons, folder)
    settings = f"--kib {arguments.kib:g} --batch {' '.join(map(str, arguments.batch))} --writers {arguments.writers}"
    print(conditions(f"python -m benchmarks.replay {settings} --rounds {arguments.rounds} --seconds {arguments.seconds:g}"))
    for batch in arguments.batch:
        heads = " | ".join(f"{verb}s/s" for verb in arguments.verbs)
        print(f"\n| batches of {batch} | {heads} |\n" + "|---" * (1 + len(arguments.verbs)) + "|")
        for name in chosen(arguments, pythons):
            cells = []
            for verb in arguments.verbs:
                values = rates.get((name, verb, batch))
                cells.append(
                    "-" if not values else spread([rate for rate, _ in values]) + "; " + spread([cost for _, cost in values if cost])
                )
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
