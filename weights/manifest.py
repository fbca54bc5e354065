"""What one weight update consists of, as plain data that both ends compare.

Owns the description of an update and its errors. Must not know torch, vLLM, DeepSpeed or Ray.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import xxhash


class WeightUpdateError(RuntimeError):
    """An update that must not reach, or did not reach, an engine whole; the message names what is wrong."""


class BaseMismatchError(WeightUpdateError):
    """The receiver does not hold what the changes refer to; the whole weights are needed."""


class SenderLostError(WeightUpdateError):
    """What was sent is gone before it arrived: the receiver is fine, its old weights are in service."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketManifest:
    """One safetensors file of a model: which tensors it holds and the checksum of its bytes.

    Example: ``BucketManifest(names=("lm_head.weight",), dtypes=("float32",), shapes=((320, 128),), nbytes=163928,
    checksum="9f86d0818c3b2a10")``.
    """

    names: tuple[str, ...]  # as Hugging Face names parameters, in the order of the file
    dtypes: tuple[str, ...]  # "float32" or "bfloat16", one per name; all the same
    shapes: tuple[tuple[int, ...], ...]  # of the full tensors, one per name
    nbytes: int  # of the whole file, its header included
    checksum: str  # weights.buckets.checksum of the file; the version is no part of it, so that equal weights are equal bytes
    frozen: bool = False  # its parameters are not trained: after the first time it stays where it is


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightManifest:
    """A whole model at one version: every parameter exactly once, in one or more buckets, however they travel."""

    version: int  # the policy version that these weights are
    buckets: tuple[BucketManifest, ...]
    num_parameters: int  # named tensors over all buckets

    def __post_init__(self) -> None:
        names = self.names
        if len(names) != self.num_parameters:
            raise WeightUpdateError(f"the manifest of version {self.version} promises {self.num_parameters} parameters, names {len(names)}")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise WeightUpdateError(f"the manifest of version {self.version} names parameters twice: {_some(twice)}")

    @property
    def names(self) -> tuple[str, ...]:
        """All parameter names, in the order of the buckets."""
        return tuple(name for bucket in self.buckets for name in bucket.names)

    @property
    def nbytes(self) -> int:
        """Bytes of all buckets."""
        return sum(bucket.nbytes for bucket in self.buckets)

    @property
    def checksum(self) -> str:
        """Of the whole model, 16 hexadecimal digits: what both ends of a sync must agree on. The version is no part of it."""
        contents = [[bucket.names, bucket.dtypes, bucket.shapes, bucket.nbytes, bucket.checksum] for bucket in self.buckets]
        return xxhash.xxh3_64_hexdigest(json.dumps(contents, separators=(",", ":")).encode())

    def same_layout(self, other: WeightManifest) -> bool:
        """Whether the other holds the same tensors at the same places, so that changes can be applied to its files.

        Args:
            other: of any version.

        Returns:
            True when only versions and checksums may differ.
        """
        return [_place(bucket) for bucket in self.buckets] == [_place(bucket) for bucket in other.buckets]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON or msgpack."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WeightManifest:
        """Read to_dict's form back, also after JSON or msgpack made lists of the tuples.

        Args:
            data: with the fields of WeightManifest.

        Returns:
            An equal manifest.

        Raises:
            WeightUpdateError: when a field is missing, unknown or of another shape.
        """
        try:
            buckets = tuple(
                BucketManifest(
                    names=tuple(bucket["names"]),
                    dtypes=tuple(bucket["dtypes"]),
                    shapes=tuple(tuple(int(size) for size in shape) for shape in bucket["shapes"]),
                    nbytes=int(bucket["nbytes"]),
                    checksum=str(bucket["checksum"]),
                    frozen=bool(bucket["frozen"]),
                )
                for bucket in data["buckets"]
            )
            return cls(version=int(data["version"]), buckets=buckets, num_parameters=int(data["num_parameters"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightUpdateError(f"not a weight manifest: {error!r}") from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by name."""
        return {name: shape for bucket in self.buckets for name, shape in zip(bucket.names, bucket.shapes, strict=True)}

    def check_same_parameters(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Refuse an update that is not of exactly these parameters.

        Args:
            expected: name and shape of each, in any order.

        Raises:
            WeightUpdateError: naming what is missing, unknown, or of another shape.
        """
        found = self.shapes
        missing = sorted(expected.keys() - found.keys())
        unknown = sorted(found.keys() - expected.keys())
        reshaped = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
        if missing or unknown or reshaped:
            raise WeightUpdateError(
                f"the update to version {self.version} lacks {_some(missing)}, has unknown {_some(unknown)}, "
                f"has {_some(reshaped)} in another shape"
            )


class Part(str, Enum):
    """How a bucket gets to a receiver."""

    same = "same"  # not at all: the receiver has it
    changes = "changes"  # to what the receiver has
    whole = "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyPart:
    """One bucket of a version, on its way while the buckets after it are still being read out of training.

    What a receiver makes of it saves time and never a check: the shipment that follows has every part.
    """

    version: int  # that is being published
    base: str  # checksum of the model that it refers to
    index: int  # of the bucket
    part: Part
    payload: Any = None  # bytes or a reference to them; None for a part that is the same


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipment:
    """A version on its way to one receiver: files that it can read, or parts."""

    manifest: WeightManifest
    paths: tuple[str, ...] | None = None  # the sender's files, for a receiver on its node; None: the parts come
    base: str | None = None  # checksum of the model that the parts refer to; None: they are all whole
    parts: tuple[Part, ...] = ()  # one a bucket
    payloads: tuple[Any, ...] = ()  # one a bucket: bytes or a reference to them; None for a part that is the same
    nbytes: int = 0  # of all payloads


@dataclass(frozen=True, kw_only=True, slots=True)
class BroadcastOutcome:
    """What became of one broadcast."""

    checksum: str  # of the whole model as the sender summed it up; what every actor without a failure has answered
    failures: dict[str, str]  # reason by the name of the actor; the others hold the version when at least one was reached
    delivered: bool  # whether the others hold the version; False: it was given up, and must be sent again without those that failed


def _place(bucket: BucketManifest) -> tuple[Any, ...]:
    return bucket.names, bucket.dtypes, bucket.shapes, bucket.nbytes


def _some(names: list[str], limit: int = 5) -> str:
    """The first names and how many more there are; "nothing" when there are none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"
