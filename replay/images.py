"""Images of the stored rows by content hash, each held once however many rows show it.

Owns the bytes and the count of the rows that show each image. Must not know rows' other columns, draws or Ray. Rows that name a path only
are counted too, without bytes, so that bytes which come with a later row are dropped with the last row that shows the image.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa


def image_hashes(batch: pa.RecordBatch) -> Counter[str]:
    """Count what the rows of a batch show.

    Args:
        batch: with the column ``images`` of TRAJECTORY_SCHEMA.

    Returns:
        SHA-256 of each image's bytes, as 64 hexadecimal digits -> how often it is shown.
    """
    counted = batch.column("images").flatten().field("sha256").value_counts()
    return Counter(dict(zip(*(part.to_pylist() for part in counted.flatten()), strict=True)))


class ImageStore:
    """Reference counts and bytes by content hash."""

    def __init__(self) -> None:
        self._shown: Counter[str] = Counter()
        self._pinned: Counter[str] = Counter()  # of them, those of rows that can't leave
        self._content: dict[str, bytes] = {}
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._content)

    @property
    def shows_any(self) -> bool:
        """Whether any row shows an image, with bytes or without."""
        return bool(self._shown)

    @property
    def num_bytes(self) -> int:
        """Bytes of the images."""
        return self._num_bytes

    @property
    def content(self) -> dict[str, bytes]:
        """The images by their hash; a copy that shares the bytes."""
        return dict(self._content)

    def new(self, shown: Iterable[str], images: Mapping[str, bytes]) -> dict[str, bytes]:
        """Choose what rows would add.

        Args:
            shown: hashes of the images that they show.
            images: bytes that come with them.

        Returns:
            The images that aren't there yet.
        """
        return {name: images[name] for name in shown if name in images and name not in self._content}

    @property
    def pinned_bytes(self) -> int:
        """Bytes of the images that rows show which can't leave."""
        return sum(len(self._content.get(name, b"")) for name in self._pinned)

    def add(self, shown: Counter[str], images: Mapping[str, bytes]) -> None:
        """Count the images of new rows, which can't leave yet, and hold the bytes that came with them.

        Args:
            shown: of image_hashes.
            images: bytes by hash; those that no row shows are not held.
        """
        self._shown.update(shown)
        self._pinned.update(shown)
        for name in shown.keys() & images.keys():
            if name not in self._content:
                self._content[name] = bytes(images[name])  # a copy: what arrives may lie in the object store
                self._num_bytes += len(images[name])

    def unpin(self, shown: Counter[str]) -> None:
        """Note that rows may leave from now on.

        Args:
            shown: of image_hashes, of rows that were added.
        """
        self._pinned = self._pinned - shown if self._pinned else self._pinned

    def release(self, shown: Counter[str]) -> None:
        """Uncount the images of rows that leave; an image goes with its last row.

        Args:
            shown: of image_hashes, of rows that were added.
        """
        for name, count in shown.items():
            self._shown[name] -= count
            if self._shown[name] <= 0:
                del self._shown[name]
                self._num_bytes -= len(self._content.pop(name, b""))

    def drop(self, shown: Counter[str]) -> None:
        """Uncount the images of rows that couldn't leave until now.

        Args:
            shown: of image_hashes, of rows that were added.
        """
        self.unpin(shown)
        self.release(shown)

    def select(self, names: Iterable[str]) -> dict[str, bytes]:
        """Look images up.

        Args:
            names: hashes.

        Returns:
            Those whose bytes are there.
        """
        return {name: self._content[name] for name in names if name in self._content}


def check_images(images: Mapping[str, bytes]) -> None:
    """Refuse bytes that aren't those of their hash.

    Args:
        images: bytes by hash.

    Raises:
        ValueError: naming the first hash that doesn't fit.
    """
    for name, content in images.items():
        found = hashlib.sha256(content).hexdigest()
        if found != name:
            raise ValueError(f"an image came under the hash {name}, but the SHA-256 of its {len(content)} bytes is {found}")
