"""Named tensors as safetensors files of bounded size: their layout, and the check that what arrived is what was sent.

Owns the bytes of a model. Must not know vLLM, DeepSpeed, Ray or where the bytes travel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from weights.manifest import BucketManifest, WeightManifest, WeightUpdateError
from weights.source import ParameterMetadata

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
WORDS: dict[str, Any] = {"float32": np.uint32, "bfloat16": np.uint16}
"""One number of each format as raw bits."""

_HEADER_ALIGNMENT = 8  # so that float32 data can be viewed in place
CHUNK_BYTES = 2**18
"""What is copied, compared and hashed while it is in a core's cache: one trip to memory instead of three."""

Payload = bytes | bytearray | memoryview | NDArray[np.uint8]


def as_bytes(payload: Payload) -> memoryview:
    """A payload as one flat row of bytes, without a copy.

    Args:
        payload: contiguous.

    Returns:
        Its memory, writable only when the payload is.
    """
    return memoryview(payload).cast("B")  # type: ignore[arg-type]  # arrays are buffers; their type stubs say so from Python 3.12 on


def checksum(payload: Payload) -> str:
    """The checksum of a payload's bytes: XXH3, which runs as fast as memory is read; CRC-32 takes seven times as long.

    Args:
        payload: any length.

    Returns:
        Sixteen hexadecimal digits.
    """
    return xxhash.xxh3_64_hexdigest(as_bytes(payload))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its bucket."""

    bucket: int  # index
    start: int  # of its bytes in the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class BucketLayout:
    """One safetensors file before its data is there."""

    tensors: tuple[ParameterMetadata, ...]
    header: bytes  # length field and JSON; the data follow
    nbytes: int  # of the whole file
    frozen: bool  # see BucketManifest

    @property
    def dtype(self) -> str:
        """Of all its tensors."""
        return _dtype_name(self.tensors[0])

    def places(self, index: int) -> dict[str, Place]:
        """Where each tensor lies.

        Args:
            index: of this bucket.

        Returns:
            By name.
        """
        found, start = {}, len(self.header)
        for tensor in self.tensors:
            found[tensor.name] = Place(index, start, tensor.nbytes)
            start += tensor.nbytes
        return found

    def manifest(self, digest: str) -> BucketManifest:
        """Describe the file.

        Args:
            digest: checksum of its bytes.

        Returns:
            What both ends compare.
        """
        return BucketManifest(
            names=tuple(tensor.name for tensor in self.tensors),
            dtypes=tuple(_dtype_name(tensor) for tensor in self.tensors),
            shapes=tuple(tensor.shape for tensor in self.tensors),
            nbytes=self.nbytes,
            checksum=digest,
            frozen=self.frozen,
        )


def plan(tensors: Iterable[ParameterMetadata], bucket_bytes: int) -> list[BucketLayout]:
    """Share tensors out over buckets: trained ones and frozen ones apart, and each number format apart.

    Args:
        tensors: in the order in which they will come.
        bucket_bytes: a bucket's tensors stay below this; a larger tensor gets a bucket of its own.

    Returns:
        Layouts; within a bucket the tensors keep their order.

    Raises:
        WeightUpdateError: for a tensor of another number format.
    """
    if bucket_bytes <= 0:
        raise ValueError(f"bucket_bytes must be positive, got {bucket_bytes}")
    closed: list[list[ParameterMetadata]] = []
    filling: dict[tuple[bool, torch.dtype], list[ParameterMetadata]] = {}
    for tensor in tensors:
        if tensor.dtype not in _SAFETENSORS_DTYPES:
            raise WeightUpdateError(f"{tensor.name} is {tensor.dtype}; weights travel as float32 or bfloat16")
        kind = (tensor.frozen, tensor.dtype)
        pending = filling.setdefault(kind, [])
        if pending and sum(other.nbytes for other in pending) + tensor.nbytes > bucket_bytes:
            closed.append(pending)
            pending = filling[kind] = []
        pending.append(tensor)
    return [_layout(group) for group in [*closed, *filling.values()]]


def manifest_of(version: int, buckets: Sequence[BucketManifest]) -> WeightManifest:
    """The manifest of a whole model.

    Args:
        version: the policy version.
        buckets: all of them.

    Returns:
        With the parameters counted.

    Raises:
        WeightUpdateError: when a parameter is in two buckets.
    """
    return WeightManifest(version=version, buckets=tuple(buckets), num_parameters=sum(len(bucket.names) for bucket in buckets))


def tensor_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A tensor's bytes, without a copy when it lies in one piece in this process's memory.

    Args:
        tensor: float32 or bfloat16, on any device.

    Returns:
        [bytes], to be read only.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def data_start(bucket: BucketManifest) -> int:
    """Where the tensors begin in a bucket's file.

    Args:
        bucket: of any version.

    Returns:
        Bytes of its header.
    """
    numbers = sum(int(np.prod(shape, dtype=np.int64)) for shape in bucket.shapes)
    return bucket.nbytes - numbers * WORDS[bucket.dtypes[0]]().itemsize


def verify_bucket(bucket: BucketManifest, payload: Payload, *, where: str, read: str | None = None) -> None:
    """Check one bucket: its size, its checksum, and that its own header lists the manifest's tensors.

    Args:
        bucket: what was sent.
        payload: what arrived.
        where: begins the error message.
        read: its checksum, when every byte has been read before; None: it is computed.

    Raises:
        WeightUpdateError: naming what differs.
    """
    data = as_bytes(payload)
    if data.nbytes != bucket.nbytes:
        raise WeightUpdateError(f"{where}: {bucket.nbytes} bytes were sent, {data.nbytes} arrived")
    found = checksum(payload) if read is None else read
    if found != bucket.checksum:
        raise WeightUpdateError(f"{where}: the checksum is {found}, {bucket.checksum} was sent")
    header = _read_header(data, where)
    listed = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    safetensors_names = {str(dtype).removeprefix("torch."): code for dtype, code in _SAFETENSORS_DTYPES.items()}
    promised = {
        name: (safetensors_names.get(dtype), shape) for name, dtype, shape in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True)
    }
    if listed != promised:
        differing = sorted(name for name in listed.keys() | promised.keys() if listed.get(name) != promised.get(name))
        raise WeightUpdateError(f"{where}: header and manifest differ in {', '.join(differing[:5])}")


def _layout(tensors: list[ParameterMetadata]) -> BucketLayout:
    """The safetensors layout: header length, JSON header, data."""
    header: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": _SAFETENSORS_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _HEADER_ALIGNMENT)
    encoded = len(encoded).to_bytes(8, "little") + encoded
    return BucketLayout(tensors=tuple(tensors), header=encoded, nbytes=len(encoded) + offset, frozen=tensors[0].frozen)


def _dtype_name(tensor: ParameterMetadata) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_header(data: memoryview, where: str) -> dict[str, dict[str, Any]]:
    """The JSON header of a safetensors payload."""
    try:
        length = int.from_bytes(data[:8], "little")
        return json.loads(bytes(data[8 : 8 + length]))
    except ValueError as error:
        raise WeightUpdateError(f"{where}: not a safetensors payload: {error}") from error
