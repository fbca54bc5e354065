"""Reading ahead saves time and never a check: whatever it has read, wrong bytes are refused and right ones are taken."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_weights import TensorSource, published
from weights import verifier
from weights.buckets import CHUNK_BYTES, Payload
from weights.manifest import BucketManifest, Shipment, WeightUpdateError
from weights.progress import ReadProgress
from weights.publisher import WeightPublisher
from weights.verifier import FileVerifier

WAIT_S = 20.0


class SlowSource(TensorSource):
    """Yields its trained tensors one at a time, when a test lets it."""

    gate = threading.Semaphore(10**6)

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        for item in super().trained():
            assert self.gate.acquire(timeout=WAIT_S)
            yield item


class Ends:
    """A publisher of three trained tensors in two files and a frozen one in a third, and a verifier."""

    def __init__(self, root: Path) -> None:
        numbers = CHUNK_BYTES // 4 * 3 + 5
        tensors = [("frozen", torch.ones(7)), *((name, torch.zeros(numbers)) for name in "abc")]
        self.source = SlowSource(tensors, frozen=["frozen"])
        self.sender = WeightPublisher(self.source, bucket_bytes=8 * numbers, sends=True, root=str(root))
        self.verifier = FileVerifier()

    def publish(self, version: int) -> Shipment:
        for name in "abc":
            self.source.tensors[name] += 1
        return published(self.sender, version, compare=False)

    def verify(self, publication: Shipment) -> str:
        return self.verifier.verify(publication.paths, publication.manifest)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.verifier.stop()
    made.sender.close()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that verify reads from front to end, from now on."""
    found: list[str] = []
    original = verifier.verify_bucket

    def watched(bucket: BucketManifest, payload: Payload, *, where: str, read: str | None = None) -> None:
        if read is None:
            found.append(where)
        original(bucket, payload, where=where, read=read)

    monkeypatch.setattr(verifier, "verify_bucket", watched)
    return found


def test_a_version_is_read_while_it_is_written_and_not_again(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ends.publish(1).paths
    ends.source.gate = threading.Semaphore(0)
    ends.verifier.expect(paths, 2, timeout_s=WAIT_S)
    writing = threading.Thread(target=ends.publish, args=(2,))
    writing.start()
    ahead = ends.verifier._ahead
    assert ahead is not None
    reached = []
    for _ in "abc":
        before = sum(ahead._positions)
        ends.source.gate.release()
        deadline = time.monotonic() + WAIT_S
        while sum(ahead._positions) < before + 3 * CHUNK_BYTES and time.monotonic() < deadline:
            time.sleep(0.001)
        reached.append(sum(ahead._positions) - before)
    assert all(nbytes >= 3 * CHUNK_BYTES for nbytes in reached), "each tensor was read before the next one was written"
    writing.join(WAIT_S)
    again = reads(monkeypatch)
    manifest = ends.sender.whole()[0]
    assert ends.verifier.verify(paths, manifest) == manifest.checksum
    assert again == []


def test_wrong_bytes_are_refused_although_they_were_read_ahead(ends: Ends) -> None:
    second = ends.publish(2)
    np.memmap(second.paths[1], dtype=np.uint8, mode="r+")[-1] ^= 1
    ends.verifier.expect(second.paths, 2, timeout_s=WAIT_S)
    ahead = ends.verifier._ahead
    assert ahead is not None
    ahead.join(WAIT_S)
    with pytest.raises(WeightUpdateError, match="the checksum is"):
        ends.verify(second)


@pytest.mark.parametrize("announced", ["nothing", "another version", "other files"])
def test_without_reading_ahead_every_byte_is_read_in_the_end(announced: str, ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ends.publish(1)
    if announced == "another version":
        ends.verifier.expect(first.paths, 3, timeout_s=WAIT_S)
    if announced == "other files":
        ends.verifier.expect(first.paths[:1] * 3, 2, timeout_s=WAIT_S)
    second = ends.publish(2)
    again = reads(monkeypatch)
    assert ends.verify(second) == second.manifest.checksum
    assert len(again) == len(second.paths)


def test_what_was_read_too_early_is_read_again(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of the same number that is published twice: the reader may have read the first one's bytes."""
    first = ends.publish(2)
    ends.verifier.expect(first.paths, 2, timeout_s=WAIT_S)
    ahead = ends.verifier._ahead
    assert ahead is not None
    ahead.join(WAIT_S)
    second = ends.publish(2)
    assert second.manifest.checksum != first.manifest.checksum
    again = reads(monkeypatch)
    assert ends.verify(second) == second.manifest.checksum
    assert len(again) == len(second.paths) - 1, "all but the frozen file, which was right"


def test_a_writer_that_never_comes_costs_nothing(ends: Ends) -> None:
    first = ends.publish(1)
    ends.verifier.expect(first.paths, 2, timeout_s=0.05)
    ahead = ends.verifier._ahead
    assert ahead is not None
    ahead.join(WAIT_S)
    assert not ahead.is_alive()
    assert ends.verify(first) == first.manifest.checksum


def test_files_that_are_gone_can_t_be_expected_and_a_shrunk_one_is_refused(ends: Ends, tmp_path: Path) -> None:
    with pytest.raises(WeightUpdateError, match="can't be read ahead"):
        ends.verifier.expect((str(tmp_path / "nothing"),), 1, timeout_s=WAIT_S)
    first = ends.publish(1)
    assert ends.verify(first) == first.manifest.checksum
    os.truncate(first.paths[0], 100)
    with pytest.raises(WeightUpdateError, match="100 arrived"):
        ends.verify(first)


def test_files_stay_mapped_from_version_to_version_until_they_are_other_files(ends: Ends) -> None:
    first = ends.publish(1)
    ends.verify(first)
    held = dict(ends.verifier._mapped)
    ends.verify(ends.publish(2))
    assert ends.verifier._mapped == held
    path = Path(first.paths[0])
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert ends.verifier._map(str(path)) is not held[str(path)].memory


def test_progress_is_of_one_version(ends: Ends) -> None:
    first = ends.publish(1)
    progress = ReadProgress(first.paths)
    sizes = [os.path.getsize(path) for path in first.paths]
    assert [progress.available(index, 1) for index in range(len(sizes))] == sizes
    assert [progress.available(index, 2) for index in range(len(sizes))] == [0] * len(sizes)
