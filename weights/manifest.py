"""What one weight update consists of, as plain data that both ends compare.

Owns the description of an update and its errors. Must not know torch, vLLM, DeepSpeed or Ray.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class WeightUpdateError(RuntimeError):
    """An update that must not reach, or did not reach, an engine whole; the message names what is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketManifest:
    """One payload of an update: which tensors it holds and the checksum of its bytes.

    Example: ``BucketManifest(names=("lm_head.weight",), dtypes=("float32",), shapes=((320, 128),), nbytes=163928,
    checksum="9f86d081")``.
    """

    names: tuple[str, ...]  # as Hugging Face names parameters, in the order of the payload
    dtypes: tuple[str, ...]  # "float32" or "bfloat16", one per name
    shapes: tuple[tuple[int, ...], ...]  # of the full tensors, one per name
    nbytes: int  # of the whole safetensors payload, its header included
    checksum: str  # weights.buckets.checksum of the payload


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightManifest:
    """A whole update: every parameter of the model exactly once, in one or more buckets."""

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
        """Bytes of all payloads."""
        return sum(bucket.nbytes for bucket in self.buckets)

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


def _some(names: list[str], limit: int = 5) -> str:
    """The first names and how many more there are; "nothing" when there are none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"
