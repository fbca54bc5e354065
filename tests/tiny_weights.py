"""Weights without a model: a source of named tensors that tests change at will."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from weights.manifest import Part, Shipment, WeightManifest
from weights.publisher import WeightPublisher
from weights.source import ParameterMetadata


class TensorSource:
    """Named tensors in the shape of DeepSpeedWeightSource.

    Args:
        tensors: in order.
        frozen: names that are not trained.
    """

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]], frozen: Iterable[str] = ()) -> None:
        self.tensors = dict(tensors)
        self.frozen = set(frozen)
        self.yielded: list[str] = []

    def metadata(self) -> list[ParameterMetadata]:
        """As DeepSpeedWeightSource."""
        return [ParameterMetadata(name, t.dtype, tuple(t.shape), frozen=name in self.frozen) for name, t in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.tensors.items():
            self.yielded.append(name)
            yield name, tensor

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As DeepSpeedWeightSource."""
        return ((name, tensor) for name, tensor in self if name not in self.frozen)


def published(sender: WeightPublisher, version: int, *, compare: bool = True) -> Shipment:
    """A version that is published to its end."""
    *_, shipment = sender.publish(version, compare=compare)
    assert isinstance(shipment, Shipment)
    return shipment


def publish_once(tensors: Iterable[tuple[str, torch.Tensor]], version: int, bucket_bytes: int, root: str) -> Shipment:
    """A version of weights that nobody trains; its files stay in root."""
    return published(WeightPublisher(TensorSource(tensors), bucket_bytes=bucket_bytes, sends=True, root=root), version, compare=False)


def whole_shipment(manifest: WeightManifest, buckets: Iterable[Any]) -> Shipment:
    """All buckets as payloads, copied, since a publisher overwrites its own."""
    payloads = tuple(np.array(bucket) for bucket in buckets)
    return Shipment(manifest=manifest, parts=(Part.whole,) * len(payloads), payloads=payloads, nbytes=manifest.nbytes)


def part_shipment(shipment: Shipment) -> Shipment:
    """What a receiver of the version before gets, which can't read the sender's files."""
    return dataclasses.replace(shipment, paths=None)
