"""A receiver's own copy of the published weights, for a rollout actor that can't read the learner's: whole once, then kept by changes.

Owns the copy. Must not know vLLM, DeepSpeed, Ray or how the parts arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weights.buckets import CHUNK_BYTES, WORDS, Payload, as_bytes, data_start
from weights.changes import apply_changes
from weights.manifest import BaseMismatchError, BucketManifest, EarlyPart, Part, Shipment, WeightManifest, WeightUpdateError
from weights.progress import WriteProgress
from weights.staging import StagedUpdate, StagingArea


@dataclass(frozen=True, slots=True)
class _Early:
    """What of a version has been taken before its shipment came."""

    version: int
    base: str
    taken: set[int] = field(default_factory=set)  # buckets

    def is_of(self, update: EarlyPart | Shipment) -> bool:
        version = update.version if isinstance(update, EarlyPart) else update.manifest.version
        return (version, update.base) == (self.version, self.base)


class WeightMirror:
    """The files of one receiver.

    Args:
        area: where they are.
    """

    def __init__(self, area: StagingArea) -> None:
        self._area = area
        self._manifest: WeightManifest | None = None  # of what the files hold; None: nothing that changes could be applied to
        self._layout: WeightManifest | None = None  # of the files
        self._paths: tuple[str, ...] = ()
        self._memory: list[NDArray[np.uint8]] = []
        self._progress: WriteProgress | None = None
        self._early: _Early | None = None

    def taken(self, update: EarlyPart | Shipment) -> frozenset[int]:
        """Which of a version's buckets are here already.

        Args:
            update: any part of the version, or all of it.

        Returns:
            Indices of what take_early has taken; take looks at no payload of theirs.
        """
        return frozenset(self._early.taken) if self._early is not None and self._early.is_of(update) else frozenset()

    def take_early(self, early: EarlyPart, payload: Payload | None) -> None:
        """Bring one bucket to a version that is still being published; take, with all of it, does what is left.

        Args:
            early: the bucket, in any order.
            payload: its payload as bytes.

        Raises:
            BaseMismatchError: when the copy is not what the part refers to; nothing has changed.
            WeightUpdateError: when the part is not what it says; take may still be given the right one.
        """
        where = f"update to version {early.version}, bucket {early.index}"
        if self._early is None or not self._early.is_of(early):
            self._must_hold(early.base, where)
            self._early = _Early(early.version, early.base)
            self._begin(early.version)
        assert self._layout is not None  # of what it holds
        if not 0 <= early.index < len(self._layout.buckets):
            raise WeightUpdateError(f"{where}: there are {len(self._layout.buckets)} buckets here")
        self._take_part(self._layout.buckets[early.index], early.part, payload, early.index, where=where)
        self._early.taken.add(early.index)

    def take(self, shipment: Shipment, payloads: Sequence[Payload | None]) -> StagedUpdate:
        """Bring the copy to a version. Whether it is that version is for the engine's process to verify, before it loads anything.

        Args:
            shipment: of parts.
            payloads: its payloads as bytes; of buckets that take_early has taken, anything.

        Returns:
            The files, which stay the mirror's.

        Raises:
            BaseMismatchError: when the copy is not what the parts refer to; nothing has changed.
            WeightUpdateError: when a part is missing or is not what it says, or there is no room; the copy is of no use until a whole one.
        """
        manifest, base, parts = shipment.manifest, shipment.base, shipment.parts
        where = f"update to version {manifest.version}"
        if not len(parts) == len(payloads) == len(manifest.buckets):
            raise WeightUpdateError(f"{where}: {len(manifest.buckets)} buckets were sent, {len(payloads)} arrived")
        early, self._early = self._early, None
        begun = early is not None and early.is_of(shipment)
        taken = early.taken if early is not None and begun else set()
        if base is not None:
            if not begun:
                self._must_hold(base, where)
            if self._layout is None or not manifest.same_layout(self._layout):
                raise BaseMismatchError(f"{where}: the changes are to tensors that lie elsewhere here")
        elif any(part is not Part.whole for part in parts):
            raise WeightUpdateError(f"{where}: changes came without the checksum of the weights that they refer to")
        elif self._layout is None or not manifest.same_layout(self._layout):
            self._allocate(manifest)
        if not begun:
            self._begin(manifest.version)
        for index, (bucket, part, payload) in enumerate(zip(manifest.buckets, parts, payloads, strict=True)):
            if index not in taken:
                self._take_part(bucket, part, payload, index, where=f"{where}, bucket {index}")
        self._manifest = manifest
        return StagedUpdate(paths=self._paths, manifest=manifest)

    def forget(self) -> None:
        """Ask for a whole version next time: what is here has been found to be wrong."""
        self._manifest = self._early = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the files that the next version will be in, when its layout is the same; empty before the first."""
        return self._paths

    def _must_hold(self, base: str, where: str) -> None:
        held = self._manifest.checksum if self._manifest is not None else "nothing"
        if held != base:
            raise BaseMismatchError(f"{where}: the changes are to weights of checksum {base}, here is {held}")

    def _begin(self, version: int) -> None:
        """From here on the files are no version, until they are a whole one."""
        self._manifest = None
        self._writing().begin(version)

    def _writing(self) -> WriteProgress:
        assert self._progress is not None  # made with the files
        return self._progress

    def _allocate(self, manifest: WeightManifest) -> None:
        self._area.free(self._paths)
        self._layout, self._paths, self._memory = None, (), []
        self._paths, self._memory = self._area.allocate("mirror", [bucket.nbytes for bucket in manifest.buckets])
        self._layout = manifest
        self._progress = WriteProgress(self._paths)

    def _take_part(self, bucket: BucketManifest, part: Part, payload: Payload | None, index: int, *, where: str) -> None:
        progress = self._writing()
        if part is Part.same:
            progress.reached(index, bucket.nbytes)
            return
        if payload is None:
            raise WeightUpdateError(f"{where}: nothing arrived")
        data = np.frombuffer(as_bytes(payload), dtype=np.uint8)
        if part is Part.changes:
            start = data_start(bucket)
            words = self._memory[index][start:].view(WORDS[bucket.dtypes[0]])
            apply_changes(words, data, where=where, reached=lambda length: progress.reached(index, start + length * words.itemsize))
        elif data.nbytes != bucket.nbytes:
            raise WeightUpdateError(f"{where}: {bucket.nbytes} bytes were sent, {data.nbytes} arrived")
        else:
            for offset in range(0, data.nbytes, CHUNK_BYTES):
                end = min(offset + CHUNK_BYTES, data.nbytes)
                np.copyto(self._memory[index][offset:end], data[offset:end])
                progress.reached(index, end)
