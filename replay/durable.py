"""A replay buffer whose every change is on disk before it happens.

Owns the order of journal and buffer, and compaction. Must not know Ray or how draws are made.

The journal holds commands: what was inserted, which draws were asked for, which priorities were set. The buffer does the same for the
same commands, so that doing them again gives the same rows, counts and random numbers; each record carries a checksum of the segment's
draws before it, which shows if it ever doesn't.
A base (replay/base.py) stands for everything before its segment, but for the rows: it tells where they lie, in files that are on the disk
already. With a new base those files go in which no row lies that is still there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from conf.schema import ReplayConfig
from replay.again import LastDraw
from replay.base import WRITING, BaseWriter
from replay.drawn import Drawn, Sample
from replay.groups import InsertReceipt
from replay.intake import Admitted, Prepared, Written, prepare
from replay.journal import BASE, ROWS, SEALED, is_sealed, numbered_files, numbered_path, segments, sync_path
from replay.moving import MovedRows, move
from replay.recovery import PRIORITIES_SCHEMA, Recovery
from replay.requests import SampleRequest
from replay.row_files import RowFiles
from replay.row_records import encoded_rows, journal_files
from replay.segments import Segments, seal
from replay.snapshot import Saved
from replay.spare_files import SpareFiles
from replay.whereabouts import Places, Whereabouts, of_rows

MIN_COMPACTION_BYTES = 64 * 2**20  # below it a journal isn't worth a new base
FILES_TO_HELD = 3  # bytes of the journal for each byte that the buffer holds before there is a new base,
SPARE = 0.5  # and that the files may have too many for each byte of rows behind it: in between at least 1.5 times the buffer are written
SPARE_FILES = 2  # that may be kept beyond that, so that none is deleted for a little room and missed soon after
SEGMENTS_PER_BUFFER = 4  # a segment goes when all of its rows have left, so that a part of one is what rows leaving in turn hold too many
MAX_SEGMENT_BYTES = 256 * 2**20  # of a large buffer
ROWS_FIRST_BYTES = 256 * 2**10  # of rows that get a record of their own, before their command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """What a base is to hold, taken between two calls."""

    number: int  # of the segment behind it,
    sequence: int  # and of the first record there
    saved: Saved
    places: Places  # of the rows
    before: dict[int, int]  # bytes of the files that don't change any more, and that nothing but the base may refer to


class DurableReplay:
    """ReplayBuffer with a journal: what a call returned for outlives the process. One thread at a time.

    Args:
        config: of the replay.
        seed: of the draws of a new journal.
        folder: of the journal, used for it alone; what it holds is recovered first.
        strict: False: what is damaged is skipped; ``problems`` tells what was.

    Raises:
        JournalError: when the journal is damaged, of another mode or doesn't lead to the same draws.
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
        self._whereabouts = recovered.whereabouts
        self._spares = SpareFiles(self._folder)
        self._tidy(max(numbered_files(self._folder, BASE), default=0), journal_files(self._folder).keys() - recovered.needed_files)
        start = {"kind": "start", "config": _plain(config), "seed": seed}
        for path in numbered_files(self._folder, ROWS).values():
            sync_path(path)
        for number, path in segments(self._folder).items():
            if not is_sealed(path):
                seal(path, numbered_path(self._folder, SEALED, number))
        self._ended = {number: path.stat().st_size for number, path in segments(self._folder).items()}
        self._rows = RowFiles(self._folder, self._spares)
        self._bases = BaseWriter(self._folder)
        self._segments = Segments(
            self._folder,
            number=recovered.last_segment + 1,
            sequence=recovered.sequence,
            sync_s=config.journal_sync_s,
            sync_before=self._rows.sync,
            start=start,
        )
        self._bound_spares()
        self._spares.trim()

    @property
    def wants_compaction(self) -> bool:
        """Whether the journal outweighs what it leads to by far."""
        return self._num_bytes > self._most_bytes

    def insert(
        self, batch: pa.RecordBatch, turns: Mapping[str, int] | None = None, images: Mapping[str, bytes] | None = None
    ) -> InsertReceipt:
        """See ReplayBuffer.insert.

        Raises:
            OSError: when the journal can't be written; nothing is inserted.
        """
        prepared = self.write_rows(prepare(batch, images or {}))
        try:
            admitted = self.buffer.admit(prepared, turns)
            self.write(admitted)
        finally:
            self.settle(prepared)
        return self.buffer.add(admitted)

    def writes_first(self, prepared: Prepared) -> bool:
        """Tell whether ``write_rows`` has something to do."""
        return prepared.encoded.size >= ROWS_FIRST_BYTES

    def write_rows(self, prepared: Prepared) -> Prepared:
        """Write rows before it is known whether they may come in, if they are many bytes; in any thread, beside anything else.

        Args:
            prepared: of prepare.

        Returns:
            The same with their place in the journal, for ``settle``.

        Raises:
            OSError: when the journal can't be written.
        """
        if not self.writes_first(prepared):
            return prepared
        with self._giving_up_spares():
            return dataclasses.replace(prepared, written=self._rows.write(prepared.encoded, file_bytes=self._file_bytes))

    def settle(self, prepared: Prepared) -> None:
        """Note that rows were inserted, or won't be.

        Args:
            prepared: of write_rows, once.
        """
        if prepared.written is not None:
            self._rows.settle(prepared.written)

    def write(self, admitted: Admitted) -> None:
        """Write what was admitted to the journal, in any thread, while nothing else changes; buffer.add is to follow, whatever happens.

        Raises:
            OSError: when the journal can't be written; nothing may be inserted then.
        """
        names = [summary.group_id for summary in admitted.arrivals.summaries]
        written = admitted.written
        rows, body = encoded_rows(admitted.encoded if written is None else None, admitted.images)
        meta = {"turns": dict(zip(names, admitted.turns, strict=True)), "duplicates": admitted.arrivals.duplicate_groups, **rows}
        if written is not None:
            meta["at"] = [written.file, written.offset]
        if self._segments.num_bytes > self._file_bytes and self._segments.may_rotate:
            self._rotate()
        file, offset = self._append("insert", meta, body)
        at = written or Written(file=file, offset=offset)
        self._whereabouts.add(serial=self.buffer.next_serial, length=len(admitted.arrivals.rows), file=at.file, offset=at.offset)
        self._whereabouts.add_images(admitted.images, file=file, offset=offset)

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
        self._whereabouts = Whereabouts()
        self.finish_compaction(self.begin_compaction())

    def begin_compaction(self) -> Begun:
        """Take the state of now and begin the segment behind it: the short part, between two other calls, shortest after sync.

        Returns:
            For finish_compaction, which may run in another thread.

        Raises:
            OSError: when the segment can't be written; everything is as it was.
        """
        saved, sequence = self.buffer.capture(), self._segments.sequence
        self._rotate()  # on a full disk the former stays
        begun = Begun(
            number=self._segments.number,
            sequence=sequence,
            saved=saved,
            places=self._whereabouts.places(),
            before={**self._ended, **self._rows.settled()},
        )
        if self._last is not None:  # the base is behind it, and whoever asked may not have its answer yet
            self._append("drawn", *self._last.encoded())
        return begun

    def finish_compaction(self, begun: Begun) -> None:
        """Write a base and let go of what it stands for; one at a time.

        Args:
            begun: of begin_compaction.

        Raises:
            OSError: when it can't be written; the old files stay.
        """
        moved = MovedRows(self._folder, self._rows.take_number, file_bytes=self._file_bytes)
        try:
            with self._giving_up_spares():
                places = move(begun.saved, begun.places, begun.before, moved, spare=SPARE, least_spare=MIN_COMPACTION_BYTES // 2)
                moved.close()
                self._segments.wait_sealed()  # a base is not before what it refers to
                self._rows.sync()
                self._bases.write(begun.number, begun.saved, places, sequence=begun.sequence)
        except OSError:
            moved.discard()
            raise
        self._whereabouts.settle(places)
        self._rows.add(moved.sizes)
        unneeded = begun.before.keys() - places.files
        self._tidy(begun.number, unneeded)
        self._rows.forget(unneeded)
        for file in unneeded:
            self._ended.pop(file, None)
        self._bound_spares()
        self._spares.trim()

    def sync(self) -> None:
        """Bring everything to the disk; in any thread."""
        self._segments.sync()

    def close(self) -> None:
        """Bring everything to the disk and end."""
        self._segments.close()
        self._rows.close()

    @property
    def _num_bytes(self) -> int:
        """Of all files that something may refer to."""
        return sum(self._ended.values()) + self._segments.num_bytes + self._rows.num_bytes

    @property
    def _most_bytes(self) -> int:
        """That they may have before a new base."""
        return max(MIN_COMPACTION_BYTES, FILES_TO_HELD * self.buffer.num_bytes)

    @property
    def _file_bytes(self) -> int:
        """Size at which a segment ends."""
        return min(max(MIN_COMPACTION_BYTES, self.buffer.num_bytes) // SEGMENTS_PER_BUFFER, MAX_SEGMENT_BYTES)

    def _append(self, kind: str, meta: dict[str, Any], body: list[Any] | None = None) -> tuple[int, int]:
        """Write a record; its segment and its place there."""
        known = {"kind": kind, "draws": self._draw_log.intdigest(), "synced": self._segments.synced}
        with self._giving_up_spares():
            offset = self._segments.append({**known, **meta}, body or [])
        return self._segments.number, offset

    def _rotate(self) -> None:
        """Begin the next segment, and the checksum of its draws."""
        number, num_bytes = self._segments.number, self._segments.num_bytes
        with self._giving_up_spares():
            self._segments.rotate()
        self._draw_log = xxhash.xxh3_64()
        self._ended[number] = num_bytes
        self._bound_spares()

    @contextlib.contextmanager
    def _giving_up_spares(self) -> Iterator[None]:
        """Write something, and let go of files that wait to be written over when that fails: the disk may be full."""
        try:
            yield
        except OSError:
            self._spares.allow(0)
            self._spares.trim()
            raise

    def _bound_spares(self) -> None:
        """Let files that wait to be written over take no more room than the journal has until its next base, give or take some files."""
        self._spares.allow(max(self._most_bytes + SPARE_FILES * self._file_bytes - self._num_bytes, 0))

    def _tidy(self, number: int, unneeded: Collection[int]) -> None:
        """Delete what a base has taken the place of, and what a process left that ended within writing one.

        Args:
            number: of the segment that follows the base; 0: there is none.
            unneeded: files that nothing refers to, if they aren't of that segment or a later one.
        """
        for file, path in journal_files(self._folder).items():
            if file < number and file in unneeded:
                if file < 0:
                    self._spares.add(path, of_rows(file))
                else:
                    path.unlink()
        for other, path in numbered_files(self._folder, BASE).items():
            if other != number:
                path.unlink()
        (self._folder / WRITING).unlink(missing_ok=True)


def _plain(config: ReplayConfig) -> dict[str, Any]:
    """Settings as JSON can hold them."""
    return {name: getattr(value, "value", value) for name, value in dataclasses.asdict(config).items()}
