"""A manifest survives JSON and names what is wrong with an update."""

import json

import pytest

from weights.manifest import BucketManifest, WeightManifest, WeightUpdateError


def bucket(*names: str) -> BucketManifest:
    return BucketManifest(
        names=names, dtypes=("float32",) * len(names), shapes=((2, 3),) * len(names), nbytes=24 * len(names), checksum="00000000"
    )


def manifest(*buckets: BucketManifest) -> WeightManifest:
    return WeightManifest(version=3, buckets=buckets, num_parameters=sum(len(b.names) for b in buckets))


def test_dictionary_form_survives_json() -> None:
    before = manifest(bucket("a", "b"), bucket("c"))
    assert WeightManifest.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_names_shapes_and_bytes_are_those_of_all_buckets() -> None:
    whole = manifest(bucket("a", "b"), bucket("c"))
    assert whole.names == ("a", "b", "c")
    assert whole.nbytes == 72
    assert whole.shapes == {"a": (2, 3), "b": (2, 3), "c": (2, 3)}


def test_parameter_in_two_buckets_is_refused() -> None:
    with pytest.raises(WeightUpdateError, match="twice: a"):
        manifest(bucket("a", "b"), bucket("a"))


def test_wrong_count_is_refused() -> None:
    with pytest.raises(WeightUpdateError, match="promises 5 parameters, names 1"):
        WeightManifest(version=1, buckets=(bucket("a"),), num_parameters=5)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": 1, "buckets": [{}], "num_parameters": 0},
        {"version": "x", "buckets": [], "num_parameters": 0},
        {"version": 1, "buckets": 7},
    ],
)
def test_anything_else_is_not_a_manifest(data: dict) -> None:
    with pytest.raises(WeightUpdateError, match="not a weight manifest"):
        WeightManifest.from_dict(data)


def test_other_parameters_are_told_by_name() -> None:
    whole = manifest(bucket("a", "b"))
    whole.check_same_parameters({"b": (2, 3), "a": (2, 3)})
    with pytest.raises(WeightUpdateError, match=r"version 3 lacks c, has unknown b, has a in another shape"):
        whole.check_same_parameters({"a": (3, 2), "c": (2, 3)})


def test_long_lists_are_cut() -> None:
    expected = {f"p{i}": (2, 3) for i in range(9)}
    with pytest.raises(WeightUpdateError, match=r"p0, p1, p2, p3, p4 and 4 more"):
        manifest(bucket("p0x")).check_same_parameters(expected)
