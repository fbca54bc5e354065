"""What differs between two versions of a bucket, as few bytes as that takes; pure functions over raw bits.

An optimizer step in bfloat16 leaves most numbers as they are: the step is smaller than half of the last digit. A number that does change is
sent as its new bits and where it stands, so applying is exact and may be repeated. Positions are counted within blocks of 2^16 numbers, two
bytes each. Layout of a payload: changes of every block [blocks] uint32, new bits [n] of the number's size, positions [n] uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weights.manifest import WeightUpdateError

BLOCK = 2**16  # numbers; their positions fit into two bytes
_COUNT, _POSITION = np.dtype(np.uint32), np.dtype(np.uint16)

Words = NDArray[Any]
"""Numbers as raw bits: uint32 for float32, uint16 for bfloat16."""


_SPARSE = 0.3
"""Of eight flags at a time: below this share of groups with one, looking into these groups is faster than looking at every flag."""


def changed_positions(old: Words, new: Words) -> NDArray[np.int64]:
    """Where two rows of numbers differ.

    Args:
        old: [length].
        new: [length].

    Returns:
        [n] ascending.
    """
    differs = old != new
    packed = np.packbits(differs, bitorder="little")  # so that an eighth of the flags has to be searched when few are set
    groups = np.flatnonzero(packed != 0)
    if len(groups) > _SPARSE * len(packed):
        return np.flatnonzero(differs)
    inside = np.flatnonzero(np.unpackbits(packed[groups], bitorder="little").view(np.bool_))
    return groups[inside >> 3] * 8 + (inside & 7)


def payload_bytes(length: int, num_changes: int, itemsize: int) -> int:
    """How large a payload is.

    Args:
        length: numbers of the bucket.
        num_changes: of them.
        itemsize: bytes of a number.

    Returns:
        Bytes.
    """
    return _num_blocks(length) * _COUNT.itemsize + num_changes * (itemsize + _POSITION.itemsize)


def pack_changes(length: int, positions: NDArray[np.int64], values: Words) -> NDArray[np.uint8]:
    """Write changes down.

    Args:
        length: numbers of the bucket.
        positions: [n] of the changed ones, ascending.
        values: [n] their new bits.

    Returns:
        The payload.
    """
    counts = np.bincount(positions >> 16, minlength=_num_blocks(length)).astype(_COUNT)
    parts = (counts, np.ascontiguousarray(values), (positions & (BLOCK - 1)).astype(_POSITION))
    return np.concatenate([part.view(np.uint8) for part in parts])


def apply_changes(
    words: Words, payload: NDArray[np.uint8], *, where: str, reached: Callable[[int], None] = lambda length: None
) -> None:
    """Bring numbers from the version before to the payload's; in place.

    Args:
        words: [length] as the sender's were before.
        payload: of pack_changes.
        where: begins the error message.
        reached: told how many numbers, from the front, are the payload's, after every block that has changes.

    Raises:
        WeightUpdateError: when the payload is not one for so many numbers; some of them may have changed.
    """
    num_blocks = _num_blocks(len(words))
    counts_end = num_blocks * _COUNT.itemsize
    counts = payload[:counts_end].view(_COUNT) if payload.nbytes >= counts_end else np.empty(0, dtype=_COUNT)
    num_changes = int(counts.sum(dtype=np.int64))
    expected = payload_bytes(len(words), num_changes, words.itemsize)
    if payload.nbytes != expected or len(counts) != num_blocks:
        raise WeightUpdateError(f"{where}: {num_changes} changes of {len(words)} numbers take {expected} bytes, {payload.nbytes} arrived")
    values_end = counts_end + num_changes * words.itemsize
    values = payload[counts_end:values_end].view(words.dtype)
    positions = payload[values_end:].view(_POSITION)
    begin = 0
    for block in np.flatnonzero(counts):
        end = begin + int(counts[block])
        target = words[block * BLOCK : (block + 1) * BLOCK]
        inside = positions[begin:end]
        if int(inside.max()) >= len(target):
            raise WeightUpdateError(f"{where}: a change lies beyond the bucket's {len(words)} numbers")
        target[inside] = values[begin:end]
        begin = end
        reached(min((int(block) + 1) * BLOCK, len(words)))


def _num_blocks(length: int) -> int:
    return -(-length // BLOCK)
