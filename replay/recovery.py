"""Reading a journal back: the base and the rows that it refers to, then every command behind it again.

Owns the order in which files are read and what damage means for it. Must not know Ray; writes nothing, but for a torn end that is cut off.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from conf.schema import ReplayConfig, ReplayMode, ReplayRemover
from replay.again import LastDraw
from replay.base import read_base
from replay.buffer import ReplayBuffer
from replay.intake import prepare
from replay.journal import BASE, JournalError, Record, is_sealed, numbered_files, read_segment, segments
from replay.requests import SampleRequest
from replay.row_records import RecordReader, images_in, rows_in
from replay.snapshot import Saved
from replay.whereabouts import Whereabouts

logger = logging.getLogger(__name__)

PRIORITIES_SCHEMA = pa.schema([("key", pa.int64()), ("priority", pa.float64())])


def is_journal(folder: str | os.PathLike[str]) -> bool:
    """Tell a journal's folder from a snapshot's."""
    return bool(segments(Path(folder))) or any(Path(folder).glob(f"{BASE}-*"))


class Recovery:
    """What a journal leads to.

    Args:
        config: of the replay now; the journal's commands are done with the settings of then.
        seed: of the draws, if there is no journal.
        folder: of the journal; may be empty.
        strict: False: skip what is damaged; ``problems`` tells what was.

    Raises:
        JournalError: when the journal is damaged, of another mode or doesn't lead to the same draws.
    """

    def __init__(self, config: ReplayConfig, *, seed: int, folder: str | os.PathLike[str], strict: bool = True) -> None:
        self._config = config
        self._folder = Path(folder)
        self._strict = strict
        self._draw_log = xxhash.xxh3_64()  # of all draws of the segment
        self.problems: list[str] = []
        self.sequence = 0  # of the next record
        self.last: LastDraw | None = None  # the last draw, if it had an id
        self.whereabouts = Whereabouts()
        self.needed_files: set[int] = set()  # what the base and the segments behind it refer to
        self._records = RecordReader(self._folder)
        self.buffer = ReplayBuffer(config, seed=seed)
        self.last_segment = self._read()

    def _read(self) -> int:
        """Do again what the journal holds; the number of the last segment."""
        bases = numbered_files(self._folder, BASE)
        paths = segments(self._folder)
        if former := sorted(path.name for path in self._folder.glob("base-*") if path.is_dir()):
            raise JournalError(f"{self._folder / former[-1]} is of the journal of an earlier version, which this one can't read")
        if not paths and not bases:
            return -1
        first = max(bases) if bases else 0
        saved = None
        if bases:
            saved, places, self.sequence = read_base(bases[first], refuse=self._refuse)
            self.needed_files = places.files
            self.whereabouts = Whereabouts(places)
        numbers = [number for number in paths if number >= first]
        if numbers != list(range(first, first + len(numbers))) or (bases and not numbers):
            missing = sorted(set(range(first, max(numbers, default=first) + 1)) - set(numbers))
            self._refuse(f"{self._folder} has no segment {missing[:3]}, though it has later ones or a base that needs it")
        replaying = self._redo_segments({number: paths[number] for number in numbers}, saved)
        if replaying is not None and self.problems:
            replaying.pass_over_missing()
        if replaying is None and saved is not None:
            self.buffer.load(saved)
        elif replaying is not None and replaying.config == self._config:
            self.buffer = replaying
        elif replaying is not None:
            self.buffer.load(replaying.capture())
        return numbers[-1] if numbers else first

    def _redo_segments(self, paths: Mapping[int, Path], saved: Saved | None) -> ReplayBuffer | None:
        """Do again what the segments hold; None when not even their beginning can be read."""
        replaying: ReplayBuffer | None = None
        damaged = bool(self.problems)
        for number, path in paths.items():
            before = paths.get(number - 1)
            for record in read_segment(path, last=not is_sealed(path), strict=self._strict, problems=self.problems):
                damaged = damaged or bool(self.problems)
                if record.sequence != self.sequence:
                    if not damaged and record.offset == 0 and before is not None and not is_sealed(before):
                        self._cut_off([path for other, path in paths.items() if other >= number])
                        return replaying
                    self._refuse(f"{record.where} is record {record.sequence}, {self.sequence} was expected")
                    damaged = True
                holding = self._records.holding_rows_of(record)
                if isinstance(holding, str) and not is_sealed(path) and not self._was_synced(record, paths, number):
                    logger.warning("%s and what follows are given up: the machine stopped before the disk held its rows", record.where)
                    os.truncate(path, record.offset)
                    self._cut_off([path for other, path in paths.items() if other > number])
                    return replaying
                self.sequence = record.sequence + 1
                if record.meta["kind"] == "start":
                    self._draw_log = xxhash.xxh3_64()
                    replaying = self._buffer_of(record, saved, replaying)
                elif replaying is not None:
                    self._redo(replaying, record, holding, number, damaged=damaged)
        return replaying

    def _cut_off(self, paths: Sequence[Path]) -> None:
        """Forget segments that reached the disk before the end of the one before them did: the machine lost power within one fsync."""
        for path in paths:
            logger.warning("%s is given up: the machine stopped before the disk held what comes before it", path)
            os.truncate(path, 0)

    def _buffer_of(self, start: Record, saved: Saved | None, before: ReplayBuffer | None) -> ReplayBuffer:
        """The buffer as it was at a segment's beginning, with the settings of then."""
        values = start.meta["config"]
        known = {field.name for field in dataclasses.fields(ReplayConfig)}
        settings = {name: value for name, value in values.items() if name in known}
        config = ReplayConfig(**{**settings, "mode": ReplayMode(settings["mode"]), "remover": ReplayRemover(settings["remover"])})
        if config.mode is not self._config.mode:
            raise JournalError(f"{start.where}: the journal is of replay.mode={config.mode.value}, this run has {self._config.mode.value}")
        if before is not None and before.config == config:
            return before
        buffer = ReplayBuffer(config, seed=start.meta["seed"])
        if before is not None:
            buffer.load(before.capture())
        elif saved is not None:
            buffer.load(saved)
        return buffer

    def _redo(self, buffer: ReplayBuffer, record: Record, holding: Record | str, number: int, *, damaged: bool) -> None:
        """Do what a record says, whose rows are in another one, or itself."""
        meta = record.meta
        if not damaged and meta["draws"] != self._draw_log.intdigest():
            self._refuse(f"{record.where}: doing the journal again has led to other draws; was it written by another version?")
        try:
            if meta["kind"] == "insert":
                self._redo_insert(buffer, record, holding, number)
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

    def _redo_insert(self, buffer: ReplayBuffer, record: Record, holding: Record | str, number: int) -> None:
        file, offset = record.meta.get("at", (number, record.offset))
        self.needed_files.add(file)
        if isinstance(holding, str):
            self._refuse(f"{holding}, where rows of {record.where} lie")
            return
        rows = rows_in(holding)
        admitted = buffer.admit(prepare(rows, images_in(record)), record.meta["turns"])
        whole = len(admitted.arrivals.rows) == rows.num_rows  # else, behind damage, not all groups are new: the next base copies them
        self.whereabouts.add(serial=buffer.next_serial, length=rows.num_rows if whole else 0, file=file, offset=offset)
        self.whereabouts.add_images(admitted.images, file=number, offset=record.offset)
        buffer.add(admitted)
        buffer.count_duplicates(record.meta["duplicates"])

    def _was_synced(self, record: Record, paths: Mapping[int, Path], number: int) -> bool:
        """Whether later records say that the disk had a record, and its rows; else they were lost with the machine's power, or may be."""
        later = (other for n, path in paths.items() if n >= number for other in read_segment(path, last=False, strict=False))
        return any(other.meta.get("synced", 0) > record.sequence for other in later)

    def _refuse(self, problem: str) -> None:
        if self._strict:
            raise JournalError(problem)
        self.problems.append(problem)
