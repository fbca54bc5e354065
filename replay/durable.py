"""A replay buffer whose every change is on disk before it happens.

Owns the order of journal and buffer, and compaction. Must not know Ray or how draws are made.

The journal holds commands: what was inserted, which draws were asked for, which priorities were set. The buffer does the same for the
same commands, so that doing them again gives the same rows, counts and random numbers; each record carries a checksum of the segment's
draws before it, which shows if it ever doesn't.
A base (replay/snapshot.py) stands for everything before its segment; with a new base older files go.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from conf.schema import ReplayConfig
from replay.again import LastDraw
from replay.drawn import Drawn, Sample
from replay.groups import InsertReceipt
from replay.intake import Admitted, prepare
from replay.journal import SegmentWriter, segment_numbers, segment_path, sync_folder
from replay.recovery import PRIORITIES_SCHEMA, Recovery
from replay.requests import SampleRequest
from replay.snapshot import Saved, write_snapshot

MIN_COMPACTION_BYTES = 64 * 2**20  # below it a journal isn't worth a new base
SEGMENTS_TO_ROWS = 2  # bytes of segments for each byte of rows before a base replaces them: each byte inserted is written 1.5 times


class DurableReplay:
    """ReplayBuffer with a journal: what a call returned for outlives the process. One thread at a time.

    Args:
        config: of the replay.
        seed: of the draws of a new journal.
        folder: of the journal, used for it alone; what it holds is recovered first.
        strict: False: what is damaged is skipped; ``problems`` tells what was.

    Raises:
        JournalError: when the journal is damaged, of another mode or doesn't lead to the same draws; SnapshotError for its base.
        OSError: when the folder can't be written.
    """

    def __init__(self, config: ReplayConfig, *, seed: int, folder: str | os.PathLike[str], strict: bool = True) -> None:
        self._config = config
        self._seed = seed
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._draw_log = xxhash.xxh3_64()  # of all draws of the segment
        recovered = Recovery(config, seed=seed, folder=self._folder, strict=strict)
        self.problems, self.buffer = recovered.problems, recovered.buffer
        self._last = recovered.last  # what was answered last, until the next draw
        self._number = recovered.last_segment
        self._older_bytes = self._segment_bytes()
        self._writer = self._open_segment(self._number + 1, recovered.sequence)

    @property
    def wants_compaction(self) -> bool:
        """Whether the segments outweigh what they lead to by far."""
        return self._older_bytes + self._writer.num_bytes > max(MIN_COMPACTION_BYTES, SEGMENTS_TO_ROWS * self.buffer.stats()["bytes"])

    def insert(
        self, batch: pa.RecordBatch, turns: Mapping[str, int] | None = None, images: Mapping[str, bytes] | None = None
    ) -> InsertReceipt:
        """See ReplayBuffer.insert.

        Raises:
            OSError: when the journal can't be written; nothing is inserted.
        """
        admitted = self.buffer.admit(prepare(batch, images or {}), turns)
        self.write(admitted)
        return self.buffer.add(admitted)

    def write(self, admitted: Admitted) -> None:
        """Write what was admitted to the journal, in any thread, while nothing else changes; buffer.add is to follow, whatever happens.

        Raises:
            OSError: when the journal can't be written; nothing may be inserted then.
        """
        names = [summary.group_id for summary in admitted.arrivals.summaries]
        pictures = sorted(admitted.images)
        meta = {
            "turns": dict(zip(names, admitted.turns, strict=True)),
            "duplicates": admitted.arrivals.duplicate_groups,
            "rows_bytes": admitted.encoded.size,
            "images": [[name, len(admitted.images[name])] for name in pictures],
        }
        self._append("insert", meta, [admitted.encoded, *(admitted.images[name] for name in pictures)])

    def sample(self, *, request_id: str | None = None, **request: Any) -> Sample:
        """See ReplayBuffer.sample.

        Args:
            request_id: a draw with the id of the last one changes nothing and is answered as that one was, also by a later process.
            **request: of ReplayBuffer.sample.

        Raises:
            OSError: when the journal can't be written; nothing is consumed.
        """
        drawn = self.answered(request_id) or self.draw(SampleRequest(**request), request_id=request_id)
        return drawn.read()

    def draw(self, request: SampleRequest, *, request_id: str | None = None) -> Drawn | LastDraw:
        """See ReplayBuffer.draw; the draw is kept for ``answered`` if it has an id.

        Raises:
            OSError: when the journal can't be written; nothing is consumed.
        """
        self.buffer.check_request(request)
        end = self.buffer.next_turn + request.num_groups
        self._append("sample", {"request": dataclasses.asdict(request), "through_turn": end, "request_id": request_id})
        drawn = self.buffer.draw(request)
        self._draw_log.update(np.ascontiguousarray(drawn.draws["key"]).tobytes())
        self._last = None if request_id is None else LastDraw(request_id=request_id, answer=drawn)
        return self._last or drawn

    def answered(self, request_id: str | None) -> LastDraw | None:
        """What a draw of this id was answered, if it was the last one.

        Args:
            request_id: of the draw; None: it has none.
        """
        return self._last if self._last is not None and self._last.request_id == request_id else None

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.floating]) -> int:
        """See ReplayBuffer.update_priorities.

        Raises:
            OSError: when the journal can't be written; nothing is changed.
        """
        wanted, values = self.buffer.check_priorities(keys, priorities)
        body = pa.RecordBatch.from_arrays([pa.array(wanted), pa.array(values)], schema=PRIORITIES_SCHEMA).serialize()
        self._append("priorities", {}, [body])
        return self.buffer.update_priorities(wanted, values)

    def load(self, saved: Saved) -> None:
        """Put a captured state in the place of this one; see ReplayBuffer.load.

        Raises:
            OSError: when the new base can't be written; the buffer has changed, and the journal still leads to what was before.
        """
        self.buffer.load(saved)
        self._last = None
        self.finish_compaction(*self.begin_compaction())

    def begin_compaction(self) -> tuple[int, Saved]:
        """Take the state of now and begin the segment behind it: the short part, between two other calls, shortest after sync.

        Returns:
            The arguments of finish_compaction, which may run in another thread.

        Raises:
            OSError: when the segment can't be written; everything is as it was.
        """
        saved = self.buffer.capture()
        former, self._writer = self._writer, self._open_segment(self._number + 2, self._writer.sequence)  # on a full disk the former stays
        self._number += 1
        former.close()
        self._older_bytes = self._segment_bytes()
        if self._last is not None:  # the base is behind it, and whoever asked may not have its answer yet
            self._append("drawn", *self._last.encoded())
        return self._number + 1, saved

    def finish_compaction(self, number: int, saved: Saved) -> None:
        """Write a base and let go of what it stands for.

        Args:
            number: of the segment that follows it.
            saved: the state of then.

        Raises:
            OSError: when it can't be written; the old files stay.
        """
        writing, base = self._folder / ".base.tmp", self._folder / f"base-{number:08d}"
        shutil.rmtree(writing, ignore_errors=True)
        write_snapshot(writing, saved)
        os.replace(writing, base)
        sync_folder(self._folder)
        for old in segment_numbers(self._folder):
            if old < number:
                segment_path(self._folder, old).unlink()
        for folder in self._folder.glob("base-*"):
            if folder != base:
                shutil.rmtree(folder)
        self._older_bytes = self._segment_bytes()

    def sync(self) -> None:
        """Bring everything to the disk; in any thread."""
        self._writer.sync()

    def close(self) -> None:
        """Bring everything to the disk and end."""
        self._writer.close()

    def _append(self, kind: str, meta: dict[str, Any], body: list[Any] | None = None) -> None:
        self._writer.append({"kind": kind, "draws": self._draw_log.intdigest(), **meta}, body or [])

    def _segment_bytes(self) -> int:
        """Of the segments before the one that is written."""
        return sum(segment_path(self._folder, n).stat().st_size for n in segment_numbers(self._folder) if n <= self._number)

    def _open_segment(self, number: int, sequence: int) -> SegmentWriter:
        path = segment_path(self._folder, number)
        writer = SegmentWriter(path, sequence=sequence, sync_s=self._config.journal_sync_s)
        config = {name: getattr(value, "value", value) for name, value in dataclasses.asdict(self._config).items()}
        try:
            writer.append({"kind": "start", "config": config, "seed": self._seed})
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._draw_log = xxhash.xxh3_64()
        return writer
