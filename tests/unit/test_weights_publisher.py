"""From the publisher to a mirror: bit-identical after any sequence of changes, whole only when it must be, frozen parameters once."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_weights import TensorSource, part_shipment, published, whole_shipment
from weights.buckets import verify_bucket
from weights.manifest import BaseMismatchError, EarlyPart, Part, Shipment, WeightUpdateError
from weights.mirror import WeightMirror
from weights.publisher import WeightPublisher
from weights.staging import StagedUpdate, StagingArea

BUCKET_BYTES = 2**18


def source(dtype: torch.dtype = torch.float32) -> TensorSource:
    torch.manual_seed(1)
    shapes = {"visual.a": (100, 33), "visual.b": (7,), "embed": (300, 301), "norm": (13,), "layer.0": (400, 99), "layer.1": (1,)}
    return TensorSource(((name, torch.randn(shape).to(dtype)) for name, shape in shapes.items()), frozen=("visual.a", "visual.b"))


def nudge(weights: TensorSource, share: float, random: np.random.Generator) -> None:
    """Change that share of the trained numbers."""
    for name, tensor in weights.tensors.items():
        if name not in weights.frozen:
            changed = torch.from_numpy(random.random(tuple(tensor.shape)) < share)
            tensor[changed] += torch.randn(int(changed.sum())).to(tensor.dtype)


@pytest.fixture
def area(tmp_path: Path) -> Iterator[StagingArea]:
    with StagingArea(str(tmp_path)) as made:
        yield made


def publisher(weights: TensorSource, tmp_path: Path) -> WeightPublisher:
    return WeightPublisher(weights, bucket_bytes=BUCKET_BYTES, sends=True, root=str(tmp_path))


def must_hold(staged: StagedUpdate, weights: TensorSource) -> None:
    """The files are verified, and bit for bit the weights."""
    for bucket, path in zip(staged.manifest.buckets, staged.paths, strict=True):
        verify_bucket(bucket, Path(path).read_bytes(), where=path)
    held = {name: tensor for path in staged.paths for name, tensor in load_file(path).items()}
    assert held.keys() == weights.tensors.keys()
    for name, tensor in weights.tensors.items():
        assert torch.equal(held[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_random_changes_later_the_mirror_is_bit_identical(dtype: torch.dtype, area: StagingArea, tmp_path: Path) -> None:
    weights, random = source(dtype), np.random.default_rng(0)
    sender, mirror = publisher(weights, tmp_path), WeightMirror(area)
    first = published(sender, 1)
    assert first.base is None and first.parts == ()
    must_hold(mirror.take(whole := whole_shipment(*sender.whole()), whole.payloads), weights)
    kinds = set()
    for version in range(2, 102):
        nudge(weights, random.choice([0.0, 0.001, 0.02, 0.3, 1.0]), random)
        update = published(sender, version)
        kinds |= set(update.parts)
        staged = mirror.take(part_shipment(update), update.payloads)
        assert staged.manifest.version == version
        if version % 10 == 1:
            must_hold(staged, weights)
    assert kinds == set(Part)


def test_special_bits_travel(area: StagingArea, tmp_path: Path) -> None:
    """Not a number, infinities and both zeros are bits like others: 0.0 to -0.0 is a change, one nan to the same nan is none."""
    weights = TensorSource([("a", torch.zeros(1000)), ("b", torch.full((8,), float("nan")))])
    sender, mirror = publisher(weights, tmp_path), WeightMirror(area)
    published(sender, 1)
    mirror.take(whole := whole_shipment(*sender.whole()), whole.payloads)
    weights.tensors["a"][:3] = torch.tensor([-0.0, float("inf"), float("nan")])
    update = published(sender, 2)
    assert update.parts == (Part.changes,)
    assert update.payloads[0] is not None and update.payloads[0].nbytes == 4 + 3 * (4 + 2)
    must_hold(mirror.take(part_shipment(update), update.payloads), weights)


def test_frozen_parameters_are_gathered_and_sent_once(tmp_path: Path) -> None:
    weights = source()
    sender = publisher(weights, tmp_path)
    first = published(sender, 1)
    weights.tensors["visual.a"] += 1  # which nobody may do: it shows that they are not read again
    nudge(weights, 0.01, np.random.default_rng(0))
    second = published(sender, 2)
    assert [(bucket.frozen, part) for bucket, part in zip(second.manifest.buckets, second.parts, strict=True)] == [
        (bucket.frozen, Part.same if bucket.frozen else Part.changes) for bucket in first.manifest.buckets
    ]
    assert [bucket.checksum for bucket in second.manifest.buckets if bucket.frozen] == [
        b.checksum for b in first.manifest.buckets if b.frozen
    ]
    assert second.manifest.checksum != first.manifest.checksum


def test_other_ranks_take_part_in_the_same_gathers(tmp_path: Path) -> None:
    weights = source()
    other = WeightPublisher(weights, bucket_bytes=BUCKET_BYTES, sends=False, root=str(tmp_path))
    assert list(other.publish(1, compare=True)) == []
    assert weights.yielded == list(weights.tensors)
    assert list(tmp_path.iterdir()) == []


def test_equal_weights_have_one_checksum_whatever_their_version(tmp_path: Path) -> None:
    sender = publisher(source(), tmp_path)
    first, second = published(sender, 1), published(sender, 2)
    assert first.manifest.checksum == second.manifest.checksum == second.base
    assert set(second.parts) == {Part.same}


def test_without_comparison_there_are_no_parts_and_the_files_are_new(tmp_path: Path) -> None:
    weights = source()
    sender = publisher(weights, tmp_path)
    published(sender, 1)
    nudge(weights, 0.5, np.random.default_rng(0))
    second = published(sender, 2, compare=False)
    assert second.base is None and second.parts == ()
    must_hold(StagedUpdate(paths=second.paths, manifest=second.manifest), weights)


def test_gather_that_fails_leaves_nothing_to_give_out_until_the_next(tmp_path: Path) -> None:
    weights = source()
    sender = publisher(weights, tmp_path)
    published(sender, 1)
    whole = dict(weights.tensors)
    weights.tensors["layer.0"] = torch.zeros(3)
    with pytest.raises(WeightUpdateError, match=r"layer.0 has 12 bytes, its place 158400"):
        published(sender, 2)
    with pytest.raises(WeightUpdateError, match="no version has been published"):
        sender.whole()
    weights.tensors = whole
    third = published(sender, 3)
    assert third.base is None
    must_hold(StagedUpdate(paths=third.paths, manifest=third.manifest), weights)


@pytest.fixture
def pair(area: StagingArea, tmp_path: Path) -> tuple[TensorSource, WeightPublisher, WeightMirror]:
    """A sender and a mirror at version 1."""
    weights = source()
    sender, mirror = publisher(weights, tmp_path), WeightMirror(area)
    published(sender, 1)
    mirror.take(whole := whole_shipment(*sender.whole()), whole.payloads)
    nudge(weights, 0.01, np.random.default_rng(0))
    return weights, sender, mirror


def test_a_missed_version_is_told_and_a_whole_one_helps(pair: tuple[TensorSource, WeightPublisher, WeightMirror]) -> None:
    weights, sender, mirror = pair
    published(sender, 2)
    nudge(weights, 0.01, np.random.default_rng(1))
    third = published(sender, 3)
    with pytest.raises(BaseMismatchError, match=rf"version 3: the changes are to weights of checksum {third.base}, here is \w+"):
        mirror.take(part_shipment(third), third.payloads)
    must_hold(mirror.take(whole := whole_shipment(*sender.whole()), whole.payloads), weights)


def test_a_new_mirror_and_one_that_was_told_to_forget_want_whole_weights(
    pair: tuple[TensorSource, WeightPublisher, WeightMirror], area: StagingArea
) -> None:
    _, sender, mirror = pair
    second = published(sender, 2)
    mirror.forget()
    for receiver in (mirror, WeightMirror(area)):
        with pytest.raises(BaseMismatchError, match="here is nothing"):
            receiver.take(part_shipment(second), second.payloads)


def test_parts_that_are_not_what_they_say_are_refused_and_spoil_nothing_for_a_whole_one(
    pair: tuple[TensorSource, WeightPublisher, WeightMirror],
) -> None:
    weights, sender, mirror = pair
    second = published(sender, 2)
    shipment = part_shipment(second)
    cut = [payload if payload is None else payload[:-1] for payload in second.payloads]
    with pytest.raises(WeightUpdateError, match=r"version 2, bucket \d: .* arrived"):
        mirror.take(shipment, cut)
    with pytest.raises(BaseMismatchError):
        mirror.take(shipment, second.payloads)
    whole = whole_shipment(*sender.whole())
    with pytest.raises(WeightUpdateError, match="buckets were sent, 1 arrived"):
        mirror.take(whole, whole.payloads[:1])
    with pytest.raises(WeightUpdateError, match="nothing arrived"):
        mirror.take(whole, [None] * len(whole.payloads))
    with pytest.raises(WeightUpdateError, match="without the checksum"):
        mirror.take(dataclasses.replace(shipment, base=None), second.payloads)
    must_hold(mirror.take(whole, whole.payloads), weights)


def test_another_model_gets_files_of_its_own(pair: tuple[TensorSource, WeightPublisher, WeightMirror], tmp_path: Path) -> None:
    _, _, mirror = pair
    other = TensorSource([("x", torch.randn(5, 5))])
    sender = publisher(other, tmp_path)
    published(sender, 9)
    whole: Shipment = whole_shipment(*sender.whole())
    must_hold(mirror.take(whole, whole.payloads), other)


def early_parts(sender: WeightPublisher, version: int) -> tuple[list[EarlyPart], Shipment]:
    *parts, shipment = sender.publish(version, compare=True)
    assert isinstance(shipment, Shipment)
    return [part for part in parts if isinstance(part, EarlyPart)], shipment


def test_a_bucket_is_given_out_before_the_next_one_s_tensors_are_read(pair: tuple[TensorSource, WeightPublisher, WeightMirror]) -> None:
    weights, sender, _ = pair
    weights.yielded.clear()
    stream = sender.publish(2, compare=True)
    order = []
    for item in stream:
        order.append((item.index if isinstance(item, EarlyPart) else "all", weights.yielded[-1:]))
    frozen, embedding, layers = 1, 0, 2
    assert order == [(frozen, []), (embedding, ["embed"]), (layers, ["layer.1"]), ("all", ["layer.1"])]


def test_early_parts_in_any_order_and_the_rest_of_the_shipment_are_the_version(
    pair: tuple[TensorSource, WeightPublisher, WeightMirror],
) -> None:
    weights, sender, mirror = pair
    random = np.random.default_rng(3)
    for version in range(2, 12):
        early, shipment = early_parts(sender, version)
        chosen = [early[index] for index in random.permutation(len(early))[: random.integers(len(early) + 1)]]
        for part in chosen:
            mirror.take_early(part, part.payload)
            mirror.take_early(part, part.payload)
        assert mirror.taken(shipment) == {part.index for part in chosen}
        rest = [None if index in mirror.taken(shipment) else payload for index, payload in enumerate(shipment.payloads)]
        must_hold(mirror.take(shipment, rest), weights)
        assert mirror.taken(shipment) == frozenset()
        nudge(weights, random.choice([0.0, 0.02, 1.0]), random)


def test_a_sender_that_dies_between_two_buckets_leaves_nothing_that_could_pass_for_a_version(
    pair: tuple[TensorSource, WeightPublisher, WeightMirror],
) -> None:
    weights, sender, mirror = pair
    base = sender.whole()[0].checksum
    stream = sender.publish(2, compare=True)
    for _ in range(2):
        part = next(stream)
        assert isinstance(part, EarlyPart) and part.base == base
        mirror.take_early(part, part.payload)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    with pytest.raises(WeightUpdateError, match="no version has been published"):
        sender.whole()
    third = published(sender, 3)
    assert third.base is None and third.parts == ()
    nudge(weights, 0.01, np.random.default_rng(1))
    early, fourth = early_parts(sender, 4)
    with pytest.raises(BaseMismatchError, match="here is nothing"):
        mirror.take_early(early[0], early[0].payload)
    with pytest.raises(BaseMismatchError, match="here is nothing"):
        mirror.take(part_shipment(fourth), fourth.payloads)
    must_hold(mirror.take(whole := whole_shipment(*sender.whole()), whole.payloads), weights)


def test_early_parts_that_can_t_be_used_are_refused_and_the_shipment_still_helps(
    pair: tuple[TensorSource, WeightPublisher, WeightMirror],
) -> None:
    weights, sender, mirror = pair
    early, shipment = early_parts(sender, 2)
    changes = next(part for part in early if part.part is Part.changes)
    with pytest.raises(BaseMismatchError, match="version 2, bucket 0: the changes are to weights of checksum other"):
        mirror.take_early(dataclasses.replace(changes, base="other"), changes.payload)
    for part in (part for part in early if part.part is Part.changes):
        with pytest.raises(WeightUpdateError, match=rf"version 2, bucket {part.index}: .* arrived"):
            mirror.take_early(part, part.payload[:-1])
    with pytest.raises(WeightUpdateError, match="bucket 9: there are 3 buckets here"):
        mirror.take_early(dataclasses.replace(changes, index=9), changes.payload)
    assert mirror.taken(shipment) == frozenset()
    must_hold(mirror.take(part_shipment(shipment), shipment.payloads), weights)


def test_early_parts_of_a_version_that_never_came_do_not_count_for_the_next(
    pair: tuple[TensorSource, WeightPublisher, WeightMirror],
) -> None:
    weights, sender, mirror = pair
    early, second = early_parts(sender, 2)
    mirror.take_early(early[1], early[1].payload)
    nudge(weights, 0.01, np.random.default_rng(1))
    third = published(sender, 3)
    assert mirror.taken(third) == frozenset()
    with pytest.raises(BaseMismatchError, match=f"checksum {third.base}, here is nothing"):
        mirror.take(part_shipment(third), third.payloads)
    whole = whole_shipment(*sender.whole())
    must_hold(mirror.take(whole, whole.payloads), weights)
    assert mirror.taken(second) == frozenset()
