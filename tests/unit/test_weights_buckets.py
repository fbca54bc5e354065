"""Payloads are safetensors, bounded, bit-identical, and anything that is not what was sent is named."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load

from weights.buckets import checksum, manifest_of, pack, verify
from weights.manifest import WeightManifest, WeightUpdateError


def tensors(dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    shapes = {"a.weight": (4, 8), "b.bias": (3,), "c.weight": (5, 7), "empty": (0, 2), "scalar": (), "d.weight": (64, 2)}
    return [(name, torch.randn(shape).to(dtype)) for name, shape in shapes.items()]


def packed(bucket_bytes: int = 256, dtype: torch.dtype = torch.float32) -> tuple[WeightManifest, list[np.ndarray]]:
    pairs = list(pack(tensors(dtype), 7, bucket_bytes))
    return manifest_of(7, [bucket for bucket, _ in pairs]), [payload for _, payload in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket_bytes", [1, 200, 10**6])
def test_payloads_are_safetensors_with_the_same_bits(dtype: torch.dtype, bucket_bytes: int) -> None:
    manifest, payloads = packed(bucket_bytes, dtype)
    loaded = {name: tensor for payload in payloads for name, tensor in load(payload.tobytes()).items()}
    expected = dict(tensors(dtype))
    assert list(manifest.names) == list(expected)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)
    verify(manifest, payloads)


def test_buckets_stay_below_the_bound_except_for_a_larger_tensor_alone() -> None:
    # bytes in float32: 128, 12, 140, 0, 4, 512; bound 256
    manifest, _ = packed(256)
    assert [bucket.names for bucket in manifest.buckets] == [("a.weight", "b.bias"), ("c.weight", "empty", "scalar"), ("d.weight",)]


def test_only_one_bucket_of_tensors_is_asked_for_ahead() -> None:
    asked = []

    def source():
        for name, tensor in tensors():
            asked.append(name)
            yield name, tensor

    next(iter(pack(source(), 1, 256)))
    assert asked == ["a.weight", "b.bias", "c.weight"]


def test_views_and_noncontiguous_tensors_are_packed_by_value() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    ((_, payload),) = pack([("t", base.t()), ("s", base[1:, ::2])], 1, 10**6)
    loaded = load(payload.tobytes())
    assert torch.equal(loaded["t"], base.t())
    assert torch.equal(loaded["s"], base[1:, ::2])


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(WeightUpdateError, match=r"x is torch.float16"):
        list(pack([("x", torch.zeros(2, dtype=torch.float16))], 1, 100))


def test_checksum_is_crc32() -> None:
    assert checksum(b"123456789") == "cbf43926"  # the check value of the CRC-32 that zip files use


def test_missing_bucket_is_counted() -> None:
    manifest, payloads = packed()
    with pytest.raises(WeightUpdateError, match="3 buckets were sent, 2 arrived"):
        verify(manifest, payloads[:-1])


def test_cut_payload_is_told_in_bytes() -> None:
    manifest, payloads = packed()
    with pytest.raises(WeightUpdateError, match=r"version 7, bucket 1: \d+ bytes were sent, \d+ arrived"):
        verify(manifest, [payloads[0], payloads[1][:-1], payloads[2]])


def test_flipped_bit_is_found() -> None:
    manifest, payloads = packed()
    payloads[2][-1] ^= 1
    with pytest.raises(WeightUpdateError, match="bucket 2: the checksum is"):
        verify(manifest, payloads)


def test_swapped_payloads_are_found() -> None:
    manifest, payloads = packed()
    with pytest.raises(WeightUpdateError, match="bucket 0"):
        verify(manifest, [payloads[1], payloads[0], payloads[2]])


def test_names_that_differ_from_the_payload_s_own_are_found() -> None:
    manifest, payloads = packed()
    first = dataclasses.replace(manifest.buckets[0], names=("a.weight", "z.bias"))
    renamed = dataclasses.replace(manifest, buckets=(first, *manifest.buckets[1:]))
    with pytest.raises(WeightUpdateError, match=r"header and manifest differ in b.bias, z.bias"):
        verify(renamed, payloads)


def test_payload_that_is_no_safetensors_is_found() -> None:
    manifest, payloads = packed()
    garbage = np.full(64, 255, dtype=np.uint8)
    bucket = dataclasses.replace(manifest.buckets[0], nbytes=64, checksum=checksum(garbage))
    with pytest.raises(WeightUpdateError, match="not a safetensors payload"):
        verify(dataclasses.replace(manifest, buckets=(bucket, *manifest.buckets[1:])), [garbage, *payloads[1:]])


def test_bytes_and_memoryviews_verify_too() -> None:
    manifest, payloads = packed()
    verify(manifest, [payloads[0].tobytes(), memoryview(payloads[1]), bytearray(payloads[2])])


def test_bucket_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="bucket_bytes must be positive, got 0"):
        list(pack(tensors(), 1, 0))
