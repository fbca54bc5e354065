"""Reading a journal back: the base, then every command behind it again.

Owns the order in which files are read and what damage means for it. Must not know Ray; writes nothing, but for a torn end that is cut off.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from algorithms.schema import TRAJECTORY_SCHEMA
from conf.schema import ReplayConfig, ReplayMode, ReplayRemover
from replay.again import LastDraw
from replay.buffer import ReplayBuffer
from replay.journal import JournalError, Record, read_segment, segment_numbers, segment_path
from replay.requests import SampleRequest
from replay.snapshot import STATE_FILE, Saved, read_snapshot

PRIORITIES_SCHEMA = pa.schema([("key", pa.int64()), ("priority", pa.float64())])


def is_journal(folder: str | os.PathLike[str]) -> bool:
    """Tell a journal's folder from a snapshot's."""
    return bool(segment_numbers(Path(folder))) or any(Path(folder).glob("base-*"))


class Recovery:
    """What a journal leads to.

    Args:
        config: of the replay now; the journal's commands are done with the settings of then.
        seed: of the draws, if there is no journal.
        folder: of the journal; may be empty.
        strict: False: skip what is damaged; ``problems`` tells what was.

    Raises:
        JournalError: when the journal is damaged, of another mode or doesn't lead to the same draws; SnapshotError for its base.
    """

    def __init__(self, config: ReplayConfig, *, seed: int, folder: str | os.PathLike[str], strict: bool = True) -> None:
        self._config = config
        self._folder = Path(folder)
        self._strict = strict
        self._draw_log = xxhash.xxh3_64()  # of all draws of the segment
        self.problems: list[str] = []
        self.last: LastDraw | None = None  # the last draw, if it had an id
        self.buffer = ReplayBuffer(config, seed=seed)
        self.last_segment, self.sequence = self._read()

    def _read(self) -> tuple[int, int]:
        """Do again what the journal holds; the number of the last segment and the next record's."""
        strict = self._strict
        bases = sorted(folder for folder in self._folder.glob("base-*") if (folder / STATE_FILE).is_file())
        numbers = segment_numbers(self._folder)
        if not numbers and not bases:
            return -1, 0
        first = int(bases[-1].name.removeprefix("base-")) if bases else (numbers[0] if numbers else 0)
        saved = read_snapshot(bases[-1]) if bases else None
        numbers = [number for number in numbers if number >= first]
        expected = list(range(first, first + len(numbers))) if bases else list(range(len(numbers)))
        if numbers != expected or (bases and not numbers):
            missing = sorted(set(range(first, max(numbers, default=first) + 1)) - set(numbers))
            self._refuse(f"{self._folder} has no segment {missing[:3]}, though it has later ones or a base that needs it")
        replaying: ReplayBuffer | None = None
        sequence: int | None = None
        damaged = bool(self.problems)
        for number in numbers:
            path = segment_path(self._folder, number)
            for record in read_segment(path, last=number == numbers[-1], strict=strict, problems=self.problems):
                damaged = damaged or bool(self.problems)
                if sequence is not None and record.sequence != sequence:
                    self._refuse(f"{record.where} is record {record.sequence}, {sequence} was expected")
                    damaged = True
                sequence = record.sequence + 1
                if record.meta["kind"] == "start":
                    self._draw_log = xxhash.xxh3_64()
                    if replaying is None:
                        replaying = self._former_buffer(record, saved)
                elif replaying is not None:
                    self._redo(replaying, record, damaged=damaged)
        if replaying is None and saved is not None:
            self.buffer.load(saved)
        elif replaying is not None and replaying.config == self._config:
            self.buffer = replaying
        elif replaying is not None:
            self.buffer.load(replaying.capture())
        return (numbers[-1] if numbers else first), (sequence or 0)

    def _former_buffer(self, start: Record, saved: Saved | None) -> ReplayBuffer:
        """The buffer as it was at the journal's beginning, with the settings of then."""
        values = start.meta["config"]
        known = {field.name for field in dataclasses.fields(ReplayConfig)}
        settings = {name: value for name, value in values.items() if name in known}
        config = ReplayConfig(**{**settings, "mode": ReplayMode(settings["mode"]), "remover": ReplayRemover(settings["remover"])})
        if config.mode is not self._config.mode:
            raise JournalError(f"{start.where}: the journal is of replay.mode={config.mode.value}, this run has {self._config.mode.value}")
        buffer = ReplayBuffer(config, seed=start.meta["seed"])
        if saved is not None:
            buffer.load(saved)
        return buffer

    def _redo(self, buffer: ReplayBuffer, record: Record, *, damaged: bool) -> None:
        """Do what a record says."""
        meta = record.meta
        if not damaged and meta["draws"] != self._draw_log.intdigest():
            self._refuse(f"{record.where}: doing the journal again has led to other draws; was it written by another version?")
        try:
            if meta["kind"] == "insert":
                self._redo_insert(buffer, record)
            elif meta["kind"] == "sample" and damaged:
                buffer.consume(through_turn=meta["through_turn"], policy_version=meta["request"]["policy_version"])
            elif meta["kind"] == "sample":
                drawn = buffer.draw(SampleRequest(**meta["request"]))
                self._draw_log.update(np.ascontiguousarray(drawn.draws["key"]).tobytes())
                request_id = meta.get("request_id")
                self.last = None if request_id is None else LastDraw(request_id=request_id, answer=drawn)
            elif meta["kind"] == "drawn":
                self.last = LastDraw.decoded(meta, record.body)
            elif meta["kind"] == "priorities":
                rows = pa.ipc.read_record_batch(pa.py_buffer(record.body), PRIORITIES_SCHEMA)
                buffer.update_priorities(rows.column("key").to_numpy(), rows.column("priority").to_numpy())
        except (ValueError, RuntimeError) as error:
            self._refuse(f"{record.where} can't be done again: {error}")

    def _redo_insert(self, buffer: ReplayBuffer, record: Record) -> None:
        meta, body = record.meta, record.body
        images, start = {}, int(meta["rows_bytes"])
        for name, num_bytes in meta["images"]:
            images[name] = bytes(body[start : start + num_bytes])
            start += num_bytes
        rows = pa.ipc.read_record_batch(pa.py_buffer(body[: meta["rows_bytes"]]), TRAJECTORY_SCHEMA)
        buffer.insert(rows, meta["turns"], images)
        buffer.count_duplicates(meta["duplicates"])

    def _refuse(self, problem: str) -> None:
        if self._strict:
            raise JournalError(problem)
        self.problems.append(problem)
