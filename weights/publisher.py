"""The learner's end: a version is copied out of training, compared with the one before, and lies ready for whoever needs it.

Rank 0 keeps the last published version as safetensors files in shared memory. Engines on its node read them where they are; others get
what has changed, or everything, bucket by bucket. Owns those files. Must not know vLLM, DeepSpeed, Ray or who the receivers are.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from weights.buckets import CHUNK_BYTES, WORDS, BucketLayout, Place, as_bytes, manifest_of, plan, tensor_bytes
from weights.changes import Words, changed_positions, pack_changes, payload_bytes
from weights.manifest import EarlyPart, Part, Shipment, WeightManifest, WeightUpdateError
from weights.progress import WriteProgress
from weights.source import ParameterMetadata
from weights.staging import StagingArea, shared_memory_root

WORTHWHILE = 0.5
"""A bucket whose changes take more than this share of its bytes travels whole: comparing and applying cost as much as copying then."""


class Source(Protocol):
    """What DeepSpeedWeightSource is to this module."""

    def metadata(self) -> list[ParameterMetadata]:
        """All tensors."""

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors; a collective."""

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that are not frozen; a collective."""


class WeightPublisher:
    """Publishes versions of one model; on ranks other than 0 it only takes part in the gathering.

    Args:
        source: of this rank's weights.
        bucket_bytes: bound on a bucket.
        sends: whether this is rank 0.
        root: where the files go; None: shared memory, or the temporary folder when it has no room for the model.
    """

    def __init__(self, source: Source, *, bucket_bytes: int, sends: bool, root: str | None = None) -> None:
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._sends = sends
        self._root = root
        self._files: _Files | None = None
        self._frozen_sent = False
        self._manifest: WeightManifest | None = None  # of what the files hold; None while they are being written
        self._lock = threading.Lock()

    def publish(
        self, version: int, *, compare: bool, put: Callable[[NDArray[np.uint8]], Any] = lambda payload: payload
    ) -> Iterator[EarlyPart | Shipment]:
        """Copy the weights out of training; every rank goes through it to its end, at the same time.

        Frozen parameters are gathered and copied the first time only. A version of which only a part has been asked for counts for nothing.

        Args:
            version: policy version that they are.
            compare: find out what has changed since the version before; costs as much as copying once more.
            put: makes of a payload what travels, before the next publication overwrites it.

        Returns:
            On rank 0, when compared: each bucket as soon as it is written, while no later tensor has been looked at. At the end, always:
            the version's files, and the same parts once more. Nothing on other ranks.

        Raises:
            WeightUpdateError: when there is no room for the files.
        """
        stream = self._source.trained() if self._frozen_sent else iter(self._source)
        if not self._sends:
            for _ in stream:
                pass
            self._frozen_sent = True
            return
        with self._lock:
            if self._files is None:
                self._files = _Files(plan(self._source.metadata(), self._bucket_bytes), self._root)
            before, self._manifest = self._manifest if compare else None, None
            parts: list[EarlyPart] = []
            nbytes = 0
            for early in self._files.write(stream, version, before):
                if early.payload is not None:
                    nbytes += early.payload.nbytes
                    early = dataclasses.replace(early, payload=put(early.payload))
                parts.append(early)
                yield early
            buckets = [layout.manifest(digest) for layout, digest in zip(self._files.layouts, self._files.digests, strict=True)]
            self._manifest = manifest = manifest_of(version, buckets)
            self._frozen_sent = True
        parts.sort(key=lambda early: early.index)
        yield Shipment(
            manifest=manifest,
            paths=self._files.paths,
            base=before.checksum if before is not None else None,
            parts=tuple(early.part for early in parts),
            payloads=tuple(early.payload for early in parts),
            nbytes=nbytes,
        )

    def whole(self) -> tuple[WeightManifest, list[NDArray[np.uint8]]]:
        """The last published version, for a receiver that can't use changes; no collective, may be called from another thread.

        Returns:
            Its manifest and the buckets' memory, which the next publication overwrites.

        Raises:
            WeightUpdateError: when nothing has been published.
        """
        with self._lock:
            if self._files is None or self._manifest is None:
                raise WeightUpdateError("no version has been published")
            return self._manifest, list(self._files.memory)

    def close(self) -> None:
        """Remove the files; safe to call twice."""
        if self._files is not None:
            self._files.area.close()


class _Files:
    """The buckets of one model in shared memory."""

    def __init__(self, layouts: list[BucketLayout], root: str | None) -> None:
        self.layouts = layouts
        needed = sum(layout.nbytes for layout in layouts)
        self.area = StagingArea(str(shared_memory_root(needed)) if root is None else root)
        self.paths, self.memory = self.area.allocate("published", [layout.nbytes for layout in layouts])
        self.digests = [""] * len(layouts)
        self._progress = WriteProgress(self.paths)
        self._places: dict[str, Place] = {}
        for index, layout in enumerate(layouts):
            self.memory[index][: len(layout.header)] = np.frombuffer(layout.header, dtype=np.uint8)
            self._places.update(layout.places(index))

    def write(self, stream: Iterator[tuple[str, torch.Tensor]], version: int, before: WeightManifest | None) -> Iterator[EarlyPart]:
        """Copy the stream's tensors to their places and note each bucket's new checksum.

        Args:
            stream: whole buckets, each in its order.
            version: that they are.
            before: what the files hold; None: nothing is compared.

        Returns:
            When something is compared: each bucket, with its bytes, when it is written to its end and before the stream goes on.
        """
        self._progress.begin(version)
        base = before.checksum if before is not None else None
        writers = [_BucketWriter(layout, memory) for layout, memory in zip(self.layouts, self.memory, strict=True)]
        kept = [index for index, layout in enumerate(self.layouts) if layout.frozen and self.digests[index]]
        for index in kept:
            self._progress.reached(index, self.layouts[index].nbytes)
            if base is not None:
                yield EarlyPart(version=version, base=base, index=index, part=Part.same)
        for name, tensor in stream:
            place = self._places[name]
            data = tensor_bytes(tensor)
            if data.nbytes != place.nbytes:
                raise WeightUpdateError(f"{name} has {data.nbytes} bytes, its place {place.nbytes}")
            index, writer = place.bucket, writers[place.bucket]
            for reached in writer.add(place.start, data, compare=before is not None):
                self._progress.reached(index, reached)
            if writer.position == self.layouts[index].nbytes:
                digest, self.digests[index] = self.digests[index], writer.digest()
                if base is not None:
                    part, payload = writer.part(unchanged=digest == self.digests[index])
                    yield EarlyPart(version=version, base=base, index=index, part=part, payload=payload)
        for index, writer in enumerate(writers):
            if index not in kept and writer.position != self.layouts[index].nbytes:
                raise WeightUpdateError(f"bucket {index} ended at byte {writer.position} of {self.layouts[index].nbytes}")


class _BucketWriter:
    """Writes one bucket from front to end: hashes what comes, compares it with what is there, replaces it."""

    def __init__(self, layout: BucketLayout, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._word = np.dtype(WORDS[layout.dtype])
        self._data_start = self.position = len(layout.header)
        self._length = (layout.nbytes - len(layout.header)) // self._word.itemsize
        self._hash = xxhash.xxh3_64(layout.header)
        self._positions: list[NDArray[np.int64]] = []
        self._values: list[Words] = []
        self._num_changes = 0

    def add(self, start: int, data: NDArray[np.uint8], *, compare: bool) -> Iterator[int]:
        """Take the next tensor's bytes; yields how far the file is written, again and again."""
        if start != self.position:
            raise WeightUpdateError(f"a tensor for byte {start} of a bucket came at byte {self.position}")
        for offset in range(0, data.nbytes, CHUNK_BYTES):
            chunk = data[offset : offset + CHUNK_BYTES]
            target = self._memory[self.position : self.position + chunk.nbytes]
            if compare and self._worthwhile():
                self._replace_changed(target.view(self._word), chunk.view(self._word))
            else:
                np.copyto(target, chunk)
            self._hash.update(as_bytes(chunk))  # after the copy, which reads and writes memory at once; the chunk is in the cache then
            self.position += chunk.nbytes
            yield self.position

    def digest(self) -> str:
        """Checksum of the file."""
        return self._hash.hexdigest()

    def part(self, *, unchanged: bool) -> tuple[Part, NDArray[np.uint8] | None]:
        """How the bucket travels to a receiver that holds what was there before."""
        if unchanged:
            return Part.same, None
        if not self._worthwhile():
            return Part.whole, self._memory
        return Part.changes, pack_changes(self._length, np.concatenate(self._positions), np.concatenate(self._values))

    def _replace_changed(self, old: Words, new: Words) -> None:
        changed = changed_positions(old, new)
        if not len(changed):
            return
        values = new[changed]
        old[changed] = values
        self._positions.append(changed + (self.position - self._data_start) // self._word.itemsize)
        self._values.append(values)
        self._num_changes += len(changed)

    def _worthwhile(self) -> bool:
        return payload_bytes(self._length, self._num_changes, self._word.itemsize) <= WORTHWHILE * self._memory.nbytes
