"""Named tensors as safetensors payloads of bounded size, and the check that what arrived is what was sent.

Owns the bytes of an update. Must not know vLLM, DeepSpeed, Ray or where the payloads travel.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weights.manifest import BucketManifest, WeightManifest, WeightUpdateError

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_HEADER_ALIGNMENT = 8  # so that float32 data can be viewed in place

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
    """The checksum of a payload's bytes; CRC-32 runs at 4 GB/s on one core, cryptographic ones at 1 to 2.

    Args:
        payload: any length.

    Returns:
        Eight hexadecimal digits.
    """
    return f"{zlib.crc32(as_bytes(payload)):08x}"


def pack(source: Iterable[tuple[str, torch.Tensor]], version: int, bucket_bytes: int) -> Iterator[tuple[BucketManifest, NDArray[np.uint8]]]:
    """Turn a weight source into safetensors payloads, one at a time, so that memory stays bounded by one bucket.

    Args:
        source: full tensors, float32 or bfloat16, on any device; a tensor is copied before the next one is asked for.
        version: the policy version, written into every payload's metadata.
        bucket_bytes: a payload's tensors stay below this; a larger tensor gets a payload of its own.

    Returns:
        Manifest and payload of each bucket, in the order of the source. Payloads are uint8 arrays, which Ray ships without a copy.

    Raises:
        WeightUpdateError: for a tensor of another dtype.
    """
    if bucket_bytes <= 0:
        raise ValueError(f"bucket_bytes must be positive, got {bucket_bytes}")
    pending: list[tuple[str, torch.Tensor]] = []
    pending_bytes = 0
    for name, tensor in source:
        if tensor.dtype not in _SAFETENSORS_DTYPES:
            raise WeightUpdateError(f"{name} is {tensor.dtype}; weights travel as float32 or bfloat16")
        nbytes = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + nbytes > bucket_bytes:
            yield _payload(pending, version)
            pending, pending_bytes = [], 0
        pending.append((name, tensor))
        pending_bytes += nbytes
    if pending:
        yield _payload(pending, version)


def manifest_of(version: int, buckets: Sequence[BucketManifest]) -> WeightManifest:
    """The manifest of a whole update.

    Args:
        version: the policy version.
        buckets: as pack gave them, all of them.

    Returns:
        With the parameters counted.

    Raises:
        WeightUpdateError: when a parameter is in two buckets.
    """
    return WeightManifest(version=version, buckets=tuple(buckets), num_parameters=sum(len(bucket.names) for bucket in buckets))


def verify(manifest: WeightManifest, payloads: Sequence[Payload]) -> None:
    """Check that the payloads are the whole update and nothing else.

    Args:
        manifest: what was sent.
        payloads: what arrived, in the manifest's order.

    Raises:
        WeightUpdateError: naming the first bucket whose count, bytes, checksum or names differ.
    """
    if len(payloads) != len(manifest.buckets):
        raise WeightUpdateError(f"update to version {manifest.version}: {len(manifest.buckets)} buckets were sent, {len(payloads)} arrived")
    for index, (bucket, payload) in enumerate(zip(manifest.buckets, payloads, strict=True)):
        verify_bucket(bucket, payload, where=f"update to version {manifest.version}, bucket {index}")


def verify_bucket(bucket: BucketManifest, payload: Payload, *, where: str) -> None:
    """Check one payload: its size, its checksum, and that its own header lists the manifest's tensors.

    Args:
        bucket: what was sent.
        payload: what arrived.
        where: begins the error message.

    Raises:
        WeightUpdateError: naming what differs.
    """
    data = as_bytes(payload)
    if data.nbytes != bucket.nbytes:
        raise WeightUpdateError(f"{where}: {bucket.nbytes} bytes were sent, {data.nbytes} arrived")
    found = checksum(payload)
    if found != bucket.checksum:
        raise WeightUpdateError(f"{where}: the checksum is {found}, {bucket.checksum} was sent")
    header = _read_header(data, where)
    listed = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    safetensors_names = {str(dtype).removeprefix("torch."): code for dtype, code in _SAFETENSORS_DTYPES.items()}
    promised = {
        name: (safetensors_names.get(dtype), shape) for name, dtype, shape in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True)
    }
    if listed != promised:
        differing = sorted(name for name in listed.keys() | promised.keys() if listed.get(name) != promised.get(name))
        raise WeightUpdateError(f"{where}: header and manifest differ in {', '.join(differing[:5])}")


def _payload(tensors: list[tuple[str, torch.Tensor]], version: int) -> tuple[BucketManifest, NDArray[np.uint8]]:
    """Write the safetensors layout (header length, JSON header, data) straight into one array: a single copy of each tensor."""
    header: dict[str, Any] = {"__metadata__": {"version": str(version)}}
    offset = 0
    for name, tensor in tensors:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _SAFETENSORS_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _HEADER_ALIGNMENT)
    start = 8 + len(encoded)
    payload = np.empty(start + offset, dtype=np.uint8)
    payload[:8] = np.frombuffer(len(encoded).to_bytes(8, "little"), dtype=np.uint8)
    payload[8:start] = np.frombuffer(encoded, dtype=np.uint8)
    for _, tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes:
            target = torch.from_numpy(payload[start : start + nbytes]).view(tensor.dtype)
            target.copy_(tensor.detach().reshape(-1))
        start += nbytes
    bucket = BucketManifest(
        names=tuple(name for name, _ in tensors),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors),
        shapes=tuple(tuple(tensor.shape) for _, tensor in tensors),
        nbytes=payload.nbytes,
        checksum=checksum(payload),
    )
    return bucket, payload


def _read_header(data: memoryview, where: str) -> dict[str, dict[str, Any]]:
    """The JSON header of a safetensors payload."""
    try:
        length = int.from_bytes(data[:8], "little")
        return json.loads(bytes(data[8 : 8 + length]))
    except ValueError as error:
        raise WeightUpdateError(f"{where}: not a safetensors payload: {error}") from error
