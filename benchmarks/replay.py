"""The replay actor against the replay services that others use, the contestants taking turns in one run.

    python -m benchmarks.replay --python torchrl=PATH --python reverb=PATH --rounds 5 --kib 16 --batch 256

PATH is a Python in which the peer is installed; none of them is a dependency of this project. ``torchrl=`` serves TransferQueue as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import conditions

ROOT = Path(__file__).parents[1]
NAMES = ("ours", "ours:client", "ours:journal", "torchrl", "transferqueue", "reverb", "torchrl:local")
VERBS = ("insert", "sample", "update")


class Contestant:
    """A process that measures itself when told to."""

    def __init__(self, name: str, python: str, kib: float, folder: str) -> None:
        self.name = name
        words = [python, "-m", "benchmarks.replay_contestants"] if name.startswith("ours") else [python, "benchmarks/replay_contestants.py"]
        self._process = subprocess.Popen(
            [*words, name, str(kib), folder],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._read("READY")

    def measure(self, verb: str, batch: int, seconds: float) -> float | None:
        """A rate in items a second; None: the contestant has no such verb."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, "batch": batch, "seconds": seconds}) + "\n")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", default=[], help="NAME=PATH of a peer's Python")
    parser.add_argument("--only", nargs="*", default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--kib", type=float, default=16.0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--journal", help="folder of the journal; none: a temporary one")
    arguments = parser.parse_args()
    pythons = dict(entry.split("=", 1) for entry in arguments.python)
    pythons |= {"ours": sys.executable, "transferqueue": pythons.get("torchrl", "")}
    folder = arguments.journal or tempfile.mkdtemp(prefix="replay-journal-")
    names = [name for name in arguments.only if pythons.get(name.split(":")[0])]
    contestants: dict[str, Contestant] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for round_number in range(arguments.rounds + 1):  # the first one warms up and is not counted
        for name in names:
            if name not in contestants:
                contestants[name] = Contestant(name, pythons[name.split(":")[0]], arguments.kib, folder)
            for verb in VERBS:
                begin = time.monotonic()
                rate = contestants[name].measure(verb, arguments.batch, arguments.seconds)
                print(f"round {round_number}: {name} {verb}: {rate}, {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)
                if rate is not None and round_number:
                    rates.setdefault((name, verb), []).append(rate)
    for contestant in contestants.values():
        contestant.close()
    shutil.rmtree(folder, ignore_errors=True)
    print(conditions(f"python -m benchmarks.replay --kib {arguments.kib:g} --batch {arguments.batch} --rounds {arguments.rounds}"))
    print("\n| contestant | " + " | ".join(f"{verb}s/s" for verb in VERBS) + " |\n" + "|---" * (1 + len(VERBS)) + "|")
    for name in names:
        cells = []
        for verb in VERBS:
            values = rates.get((name, verb))
            cells.append("-" if not values else f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
