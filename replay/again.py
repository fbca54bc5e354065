"""The last draw, kept until the next one, for a caller that asks again because its answer got lost with the process that gave it.

Owns the form of a draw in the journal. Must not know how draws are made, nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from replay.drawn import Drawn, Sample


@dataclass(kw_only=True)
class LastDraw:
    """What was answered to a request with an id."""

    request_id: str
    answer: Drawn | Sample  # its rows are copied when they are read, and then kept: what is only drawn pins all that was stored beside them

    def read(self) -> Sample:
        """The draw with its rows."""
        if isinstance(self.answer, Drawn):
            self.answer = self.answer.read()
        return self.answer

    def encoded(self) -> tuple[dict[str, Any], list[pa.Buffer]]:
        """Make a journal's record of it.

        Returns:
            What JSON can hold, and buffers; the consumed trajectories are left out, which the archive has by then.
        """
        sample = self.read()
        body = [_stream(shard) for shard in sample.shards]
        stats = {name: float(value) for name, value in sample.stats.items()}
        return {"request_id": self.request_id, "stats": stats, "lengths": [part.size for part in body]}, body

    @classmethod
    def decoded(cls, meta: Mapping[str, Any], body: memoryview) -> LastDraw:
        """Read it back; the inverse of encoded.

        Args:
            meta: of the record.
            body: of the record.

        Returns:
            The draw, without its keys and the consumed trajectories.
        """
        shards, start = [], 0
        for length in meta["lengths"]:
            shards.append(pa.ipc.open_stream(pa.py_buffer(body[start : start + length])).read_all())
            start += length
        sample = Sample(shards=shards, stats=dict(meta["stats"]), keys=np.empty(0, np.int64), consumed=[])
        return cls(request_id=meta["request_id"], answer=sample)


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
