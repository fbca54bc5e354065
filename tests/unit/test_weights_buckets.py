"""Buckets are safetensors, bounded, bit-identical, and anything that is not what was sent is named."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from tests.tiny_weights import publish_once
from weights.buckets import checksum, data_start, plan, verify_bucket
from weights.manifest import WeightManifest, WeightUpdateError
from weights.source import ParameterMetadata


def tensors(dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    shapes = {"a.weight": (4, 8), "b.bias": (3,), "c.weight": (5, 7), "empty": (0, 2), "scalar": (), "d.weight": (64, 2)}
    return [(name, torch.randn(shape).to(dtype)) for name, shape in shapes.items()]


@pytest.fixture
def packed(tmp_path: Path) -> tuple[WeightManifest, list[np.ndarray]]:
    publication = publish_once(tensors(), 7, 256, str(tmp_path))
    return publication.manifest, [np.fromfile(path, dtype=np.uint8) for path in publication.paths]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket_bytes", [1, 200, 10**6])
def test_files_are_safetensors_with_the_same_bits(dtype: torch.dtype, bucket_bytes: int, tmp_path: Path) -> None:
    publication = publish_once(tensors(dtype), 7, bucket_bytes, str(tmp_path))
    loaded = {name: tensor for path in publication.paths for name, tensor in load(Path(path).read_bytes()).items()}
    expected = dict(tensors(dtype))
    assert list(publication.manifest.names) == list(expected)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)
    for bucket, path in zip(publication.manifest.buckets, publication.paths, strict=True):
        verify_bucket(bucket, Path(path).read_bytes(), where=path)


def metadata(*rows: tuple[str, tuple[int, ...], torch.dtype, bool]) -> list[ParameterMetadata]:
    return [ParameterMetadata(name, dtype, shape, frozen=frozen) for name, shape, dtype, frozen in rows]


def test_buckets_stay_below_the_bound_except_for_a_larger_tensor_alone() -> None:
    # bytes in float32: 128, 12, 140, 0, 4, 512; bound 256
    layouts = plan([ParameterMetadata(name, t.dtype, tuple(t.shape)) for name, t in tensors()], 256)
    assert [[t.name for t in layout.tensors] for layout in layouts] == [
        ["a.weight", "b.bias"],
        ["c.weight", "empty", "scalar"],
        ["d.weight"],
    ]


def test_frozen_and_trained_parameters_and_number_formats_do_not_share_a_bucket() -> None:
    single, half = torch.float32, torch.bfloat16
    rows = metadata(("v.0", (2,), half, True), ("l.0", (2,), half, False), ("norm", (2,), single, False), ("v.1", (2,), half, True))
    layouts = plan(rows, 10**6)
    assert [([t.name for t in layout.tensors], layout.frozen) for layout in layouts] == [
        (["v.0", "v.1"], True),
        (["l.0"], False),
        (["norm"], False),
    ]


def test_data_start_is_where_the_layout_puts_the_first_tensor(packed: tuple[WeightManifest, list[np.ndarray]]) -> None:
    manifest, payloads = packed
    first = dict(tensors())["a.weight"].numpy().tobytes()
    start = data_start(manifest.buckets[0])
    assert payloads[0][start : start + len(first)].tobytes() == first


def test_views_and_noncontiguous_tensors_are_copied_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    publication = publish_once([("t", base.t()), ("s", base[1:, ::2])], 1, 10**6, str(tmp_path))
    loaded = load(Path(publication.paths[0]).read_bytes())
    assert torch.equal(loaded["t"], base.t())
    assert torch.equal(loaded["s"], base[1:, ::2])


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(WeightUpdateError, match=r"x is torch.float16"):
        plan(metadata(("x", (2,), torch.float16, False)), 100)


def test_checksum_is_xxh3() -> None:
    assert checksum(b"") == "2d06800538d394c2"  # of nothing, seed 0: XXH3's published test vector


def test_cut_payload_is_told_in_bytes(packed: tuple[WeightManifest, list[np.ndarray]]) -> None:
    manifest, payloads = packed
    with pytest.raises(WeightUpdateError, match=r"here: \d+ bytes were sent, \d+ arrived"):
        verify_bucket(manifest.buckets[1], payloads[1][:-1], where="here")


def test_flipped_bit_is_found(packed: tuple[WeightManifest, list[np.ndarray]]) -> None:
    manifest, payloads = packed
    payloads[2][-1] ^= 1
    with pytest.raises(WeightUpdateError, match="here: the checksum is"):
        verify_bucket(manifest.buckets[2], payloads[2], where="here")


def test_names_that_differ_from_the_payload_s_own_are_found(packed: tuple[WeightManifest, list[np.ndarray]]) -> None:
    manifest, payloads = packed
    renamed = dataclasses.replace(manifest.buckets[0], names=("a.weight", "z.bias"))
    with pytest.raises(WeightUpdateError, match=r"header and manifest differ in b.bias, z.bias"):
        verify_bucket(renamed, payloads[0], where="here")


def test_payload_that_is_no_safetensors_is_found(packed: tuple[WeightManifest, list[np.ndarray]]) -> None:
    garbage = np.full(64, 255, dtype=np.uint8)
    bucket = dataclasses.replace(packed[0].buckets[0], nbytes=64, checksum=checksum(garbage))
    with pytest.raises(WeightUpdateError, match="not a safetensors payload"):
        verify_bucket(bucket, garbage, where="here")


def test_bucket_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="bucket_bytes must be positive, got 0"):
        plan([], 0)
