"""Where in a journal's files the stored rows and images lie, so that a base need not write them again.

Owns the index from rows' serial numbers to records. Must not know the files' bytes, what rows mean, draws or Ray.

Rows are numbered in the order of their arrival, so that those of a record are one run of neighbours: an insert adds one run, however many
rows it has. Rows that were moved lie in as many runs as their numbers have gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RUN = np.dtype(
    [
        ("serial", np.int64),  # of the first row
        ("length", np.int64),  # rows
        ("file", np.int64),  # see of_segment and of_rows
        ("offset", np.int64),  # of the record, bytes
        ("row", np.int64),  # the first row in the record
    ]
)


def of_rows(number: int) -> int:
    """Number a file of rows alone so that it differs from every segment, which is numbered as it is.

    Args:
        number: of the file.

    Returns:
        What stands for it in a run; the inverse is the same function.
    """
    return -1 - number


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where rows and images lie."""

    runs: NDArray = field(default_factory=lambda: np.empty(0, RUN))  # [N] RUN, serial numbers rise and no two runs overlap
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # file and offset of the record, by SHA-256

    @property
    def files(self) -> set[int]:
        """All files that something lies in."""
        return {*np.unique(self.runs["file"]).tolist(), *(file for file, _ in self.images.values())}

    def find(self, serials: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find rows.

        Args:
            serials: [K] of rows.

        Returns:
            [K] which run each is in; -1 where in none.
        """
        which = np.searchsorted(self.runs["serial"], serials, side="right") - 1
        if len(self.runs):
            which[serials >= self.runs["serial"][which] + self.runs["length"][which]] = -1
        return which


class Whereabouts:
    """The places of all rows that are there, while others come and a base is written.

    ``add`` and the pair of ``places`` and ``settle`` may be called in different threads.

    Args:
        places: to begin with.
    """

    def __init__(self, places: Places | None = None) -> None:
        self._settled = places or Places()
        self._new_runs: list[tuple[int, int, int, int, int]] = []
        self._new_images: dict[str, tuple[int, int]] = {}

    def add(self, *, serial: int, length: int, file: int, offset: int) -> None:
        """Note the rows that a record holds.

        Args:
            serial: of its first row; the others follow. Above all that were there.
            length: its rows.
            file: that it's in.
            offset: where it begins.
        """
        if length:
            self._new_runs.append((serial, length, file, offset, 0))

    def add_images(self, images: Iterable[str], *, file: int, offset: int) -> None:
        """Note the images that a record holds.

        Args:
            images: by SHA-256.
            file: that it's in.
            offset: where it begins.
        """
        self._new_images.update(dict.fromkeys(images, (file, offset)))

    def places(self) -> Places:
        """Take together what is known now; nothing is added meanwhile."""
        runs = np.concatenate([self._settled.runs, np.array(self._new_runs, RUN)])
        self._settled = Places(runs=runs, images={**self._settled.images, **self._new_images})
        self._new_runs, self._new_images = [], {}
        return self._settled

    def settle(self, places: Places) -> None:
        """Put other places in the stead of those that ``places`` told; what was added since stays.

        Args:
            places: of the rows that were there then, and still were when it was written.
        """
        self._settled = places


def runs_of(serials: NDArray[np.int64], *, file: int, offset: int) -> NDArray:
    """Describe a record that holds rows in any order.

    Args:
        serials: [K] of its rows.
        file: that it's in.
        offset: where it begins.

    Returns:
        [N] RUN, in the order of the rows.
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(serials) != 1) + 1])[: len(serials)]
    runs = np.empty(len(starts), RUN)
    runs["serial"], runs["length"] = serials[starts], np.diff(starts, append=len(serials))
    runs["file"], runs["offset"], runs["row"] = file, offset, starts
    return runs


def serials_of(first: Sequence[int], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Number the rows of groups.

    Args:
        first: of each group's first row.
        lengths: of each group.

    Returns:
        [R] of all rows, group by group.
    """
    parts = [np.arange(start, start + length) for start, length in zip(first, lengths, strict=True)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
