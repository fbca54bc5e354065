"""What bounds the buffer: bytes and rows, images by content, who makes room, the limit of reuse; and what a newer group changes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.schema import attached_images, sampled_from_arrow, to_record_batch
from algorithms.types import ImageRef
from conf.schema import ReplayConfig, ReplayMode, ReplayRemover
from replay.buffer import ReplayBuffer, ReplayFullError
from replay.requests import SampleRequest
from tests.fakes import make_group

PICTURES = {hashlib.sha256(content).hexdigest(): content for content in (b"a" * 1000, b"b" * 2000, b"c" * 3000)}
HASHES = list(PICTURES)


def make_buffer(mode="prioritized", **settings):
    return ReplayBuffer(ReplayConfig(mode=ReplayMode(mode), **settings), seed=0)


def batch_of(*groups):
    return to_record_batch([trajectory for group in groups for trajectory in group.trajectories])


def group_of(name, *images, **others):
    refs = tuple(ImageRef(path=f"/images/{image[:4]}.png", sha256=image) for image in images)
    return make_group(name, **{"rewards": [1, 0, 0, 1], "images": refs, **others})


def ids(buffer):
    storage = buffer.capture().storage
    return [name.split("@")[0] for name in storage.gather(storage.places).column("trajectory_id").to_pylist()]


def rows(sample):
    return [row for shard in sample.shards for row in sampled_from_arrow(shard)]


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["prioritized", "fresh", "episode"])
def test_an_image_is_stored_once_travels_with_its_rows_and_leaves_with_the_last_one(mode):
    buffer = make_buffer(mode, max_age=0)
    buffer.insert(batch_of(group_of("p0", HASHES[0], HASHES[1])), images=PICTURES)
    buffer.insert(batch_of(group_of("p1", HASHES[0], version=1)), images={HASHES[0]: PICTURES[HASHES[0]]})
    assert (buffer.stats()["images"], buffer.stats()["image_bytes"]) == (2, 3000)  # 8 rows show the first one; none the third
    drawn = buffer.sample(batch_size=200, num_shards=2, policy_version=1, num_groups=2)
    for shard in drawn.shards:
        shown = {image.sha256 for row in sampled_from_arrow(shard) for image in row.trajectory.images}
        assert attached_images(shard) == {name: PICTURES[name] for name in shown}
    if mode == "fresh":  # p0 is too old to stay
        assert (buffer.stats()["images"], buffer.stats()["image_bytes"]) == (1, 1000)
    if mode == "episode":
        assert (buffer.stats()["images"], buffer.stats()["image_bytes"]) == (0, 0)
    assert any(attached_images(shard) for shard in drawn.shards)  # what was sampled outlives what was dropped


def test_a_path_stays_a_path():
    buffer = make_buffer()
    buffer.insert(batch_of(group_of("p0", HASHES[2])))
    drawn = buffer.sample(batch_size=10)
    assert attached_images(drawn.shards[0]) == {} and buffer.stats()["image_bytes"] == 0
    assert rows(drawn)[0].trajectory.images[0].path.startswith("/images/")


def test_bytes_that_are_not_those_of_their_hash_are_refused():
    buffer = make_buffer()
    with pytest.raises(ValueError, match=f"under the hash {HASHES[0]}, but the SHA-256 of its 5 bytes is"):
        buffer.insert(batch_of(group_of("p0", HASHES[0])), images={HASHES[0]: b"other"})
    assert len(buffer) == 0 and buffer.stats()["groups_inserted"] == 0


def test_images_of_uniform_groups_leave_with_them():
    buffer = make_buffer("fresh")
    buffer.insert(batch_of(group_of("p0", HASHES[0], rewards=[1, 1, 1]), group_of("p1", HASHES[1])), images=PICTURES)
    assert buffer.stats()["images"] == 2
    buffer.sample(batch_size=4, policy_version=0, num_groups=2)
    assert buffer.capture().images == {HASHES[1]: PICTURES[HASHES[1]]}


@given(st.lists(st.tuples(st.sampled_from([(), (0,), (1,), (0, 1), (2,)]), st.booleans()), max_size=25))
@settings(max_examples=50, deadline=None)
def test_images_are_those_of_the_rows_that_are_there(groups):
    buffer, given_before = make_buffer(max_trajectories=12), set()
    for i, (shown, with_bytes) in enumerate(groups):
        names = [HASHES[j] for j in shown]
        buffer.insert(batch_of(group_of(f"p{i}", *names)), images={name: PICTURES[name] for name in names} if with_bytes else None)
        storage = buffer.capture().storage
        present = {image["sha256"] for row in storage.gather(storage.places, ["images"]).column("images").to_pylist() for image in row}
        given_before = (given_before | set(names if with_bytes else ())) & present
        assert set(buffer.capture().images) == given_before
        assert buffer.stats()["image_bytes"] == sum(len(PICTURES[name]) for name in given_before)


def test_images_are_restored(tmp_path):
    buffer = make_buffer("fresh")
    buffer.insert(batch_of(group_of("p0", HASHES[0]), group_of("p1", HASHES[1], version=5)), images=PICTURES)
    buffer.sample(batch_size=4, policy_version=5, num_groups=1)
    buffer.snapshot(tmp_path)
    again = make_buffer("fresh")
    again.restore(tmp_path)
    assert again.capture().images == buffer.capture().images
    for one in (buffer, again):
        one.sample(batch_size=4, policy_version=12, num_groups=1)
    assert (again.stats()["images"], buffer.stats()["images"]) == (1, 1)  # p0 was too old, p1 is fresh: counted alike


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_bytes_are_bounded_and_the_oldest_make_room():
    size = batch_of(group_of("p0", response_tokens=1000)).nbytes
    buffer = make_buffer(max_bytes=int(3.5 * size))
    for i in range(8):
        buffer.insert(batch_of(group_of(f"p{i}", response_tokens=1000)))
        assert buffer.stats()["bytes"] <= buffer.stats()["max_bytes"] == int(3.5 * size)
    assert set(ids(buffer)) == {"p5", "p6", "p7"} or set(ids(buffer)) == {"p4", "p5", "p6", "p7"}  # whole rows go, not whole groups
    assert buffer.stats()["evicted"] == 32 - len(buffer)


def test_images_count_as_bytes():
    size = batch_of(group_of("p0")).nbytes
    buffer = make_buffer(max_bytes=4 * size + 3500)
    for i in range(3):
        buffer.insert(batch_of(group_of(f"p{i}", HASHES[i])), images=PICTURES)
    assert set(ids(buffer)) == {"p2"} and buffer.stats()["bytes"] <= 4 * size + 3500  # 1000, 2000 and 3000 don't fit together


def test_rows_that_wait_are_never_dropped_for_bytes():
    size = batch_of(group_of("p0", response_tokens=1000)).nbytes
    buffer = make_buffer("fresh", max_bytes=int(2.5 * size))
    for i in range(2):
        buffer.insert(batch_of(group_of(f"p{i}", response_tokens=1000)))
    assert not buffer.has_room(4, size)
    with pytest.raises(ReplayFullError, match=rf"replay.max_bytes={int(2.5 * size)} not their"):
        buffer.insert(batch_of(group_of("p2", response_tokens=1000)))
    buffer.sample(batch_size=4, policy_version=0, num_groups=2)
    assert buffer.has_room(4, size)
    assert buffer.insert(batch_of(group_of("p2", response_tokens=1000))).groups == 1
    assert buffer.has_room(10**9, 1)  # for what can never fit nobody needs to wait


@pytest.mark.parametrize(("remover", "gone"), [("oldest", {"p0", "p1"}), ("stalest", {"p2", "p3"}), ("lowest_priority", {"p1", "p4"})])
def test_who_makes_room(remover, gone):
    buffer = make_buffer(max_trajectories=20, remover=ReplayRemover(remover))
    versions, rewards = [5, 6, 1, 2, 9], [[1, 0], [0.2, 0], [1, 0], [1, 0], [0.4, 0]]
    for i in range(5):
        buffer.insert(batch_of(make_group(f"p{i}", rewards=rewards[i] * 2, correct=[True, False] * 2, version=versions[i])))
    buffer.insert(batch_of(make_group("p5", rewards=[1, 0] * 4, version=9)))
    assert set(ids(buffer)) == {f"p{i}" for i in range(6)} - gone


def test_rows_in_use_outlive_their_eviction():
    buffer = make_buffer(max_trajectories=4)
    buffer.insert(batch_of(group_of("p0")))
    drawn = buffer.sample(batch_size=8)
    buffer.insert(batch_of(group_of("p1")))
    assert {row.trajectory.response_text for row in rows(drawn)} <= {f"response {i} to p0@0" for i in range(4)}
    assert set(ids(buffer)) == {"p1"}


@pytest.mark.parametrize("refresh", [False, True])
def test_rows_are_copied_as_they_were_when_drawn(refresh):
    """Two equal buffers: one copies at once, the other after all rows left and the priorities changed."""
    one, other = (make_buffer(max_trajectories=8, priority_refresh=refresh) for _ in range(2))
    for buffer in (one, other):
        buffer.insert(batch_of(group_of("p0", HASHES[0]), group_of("p1", HASHES[1])), images=PICTURES)
    expected = one.sample(batch_size=30, num_shards=2)
    drawn = other.draw(SampleRequest(batch_size=30, num_shards=2))
    for i in range(4):
        other.insert(batch_of(group_of("p0", visit=i + 1, version=1), group_of(f"q{i}", version=1)))
    assert not set(ids(other)) & {"p1"} and not other.stats()["images"]
    for late, early in zip(drawn.read().shards, expected.shards, strict=True):
        assert late.equals(early) and attached_images(late) == attached_images(early) != {}


# -- reuse -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.lists(st.integers(1, 7), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_no_row_is_drawn_more_often_than_allowed(limit, sizes):
    buffer = make_buffer(max_times_sampled=limit)
    buffer.insert(batch_of(group_of("p0"), group_of("p1", rewards=[1, 0, 0])))
    counts: dict[int, int] = {}
    for size in sizes:
        if buffer.num_drawable == 0:
            break
        for row in rows(buffer.sample(batch_size=size)):
            counts[row.key] = counts.get(row.key, 0) + 1
            assert row.times_sampled <= limit
    assert max(counts.values()) <= limit
    assert len(buffer) == 7 - sum(count == limit for count in counts.values()) == 7 - buffer.stats()["removed"]


def test_a_short_draw_is_shared_by_the_updates():
    buffer = make_buffer(max_times_sampled=1)
    buffer.insert(batch_of(group_of("p0")))
    drawn = buffer.sample(batch_size=8, num_updates=2)
    assert sorted(row.update for row in rows(drawn)) == [0, 0, 1, 1]


# -- newer baselines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fresh", "prioritized"])
def test_a_newer_group_refreshes_the_advantages_of_its_prompt(mode):
    buffer = make_buffer(mode, priority_refresh=True, max_age=99)
    buffer.insert(batch_of(make_group("p0", rewards=[1, 0, 0, 0]), make_group("p1", rewards=[1, 0])))  # means 1/4 and 1/2
    buffer.sample(batch_size=4, policy_version=0, num_groups=2)
    buffer.insert(batch_of(make_group("p0", rewards=[1, 1, 1, 0], visit=1, version=1)))  # 3/4
    older = [row for row in rows(buffer.sample(batch_size=4000, policy_version=1, num_groups=1)) if not row.fresh]
    old = [row for row in older if row.trajectory.group_id == "p0@0"]
    assert {(row.trajectory.reward, row.trajectory.advantage) for row in old} == {(1.0, 0.25), (0.0, -0.75)}
    untouched = {row.trajectory.advantage for row in older if row.trajectory.group_id == "p1@0"}
    assert untouched == {0.5, -0.5}
    by_key = {row.key: row for row in old}
    total = {row.key: abs(row.trajectory.advantage) * np.exp(-row.age / 500) for row in older}
    for key, row in by_key.items():
        assert row.probability == pytest.approx(total[key] / sum(total.values()))
    assert buffer.stats()["refreshed"] == 4 and buffer.stats()["removed"] == 0


def test_what_was_mastered_leaves():
    buffer = make_buffer("fresh", priority_refresh=True, max_age=99)
    buffer.insert(batch_of(make_group("p0", rewards=[1, 0, 1, 0])))
    buffer.sample(batch_size=4, policy_version=0, num_groups=1)
    buffer.insert(batch_of(make_group("p0", rewards=[1, 1, 1, 1], visit=1, version=1)))  # all right by now
    drawn = rows(buffer.sample(batch_size=100, policy_version=1, num_groups=1))
    assert {(row.trajectory.reward, row.trajectory.advantage) for row in drawn} == {(0.0, -1.0)}
    assert (len(buffer), buffer.stats()["removed"], buffer.stats()["refreshed"]) == (2, 2, 2)


def test_refreshed_advantages_are_restored(tmp_path):
    def run(interrupt):
        buffer = make_buffer("fresh", priority_refresh=True, max_age=99)
        drawn = []
        for step in range(8):
            buffer.insert(batch_of(*(make_group(f"p{i}", rewards=[1, 0, (i + step) % 3 / 2], visit=step, version=step) for i in range(3))))
            drawn.append(buffer.sample(batch_size=30, policy_version=step, num_groups=3))
            if interrupt:
                buffer.snapshot(tmp_path)
                buffer = make_buffer("fresh", priority_refresh=True, max_age=99)
                buffer.restore(tmp_path)
        return drawn

    for one, other in zip(run(False), run(True), strict=True):
        assert one.shards[0].equals(other.shards[0])


# -- draws without a step --------------------------------------------------------------------------------------------


def test_draws_that_consume_nothing():
    buffer = make_buffer("fresh")
    buffer.insert(batch_of(group_of("p0"), group_of("p1")))
    assert len(rows(buffer.sample(batch_size=8))) == 0  # nothing was consumed yet
    buffer.sample(batch_size=4, policy_version=3, num_groups=1)
    drawn = buffer.sample(batch_size=8)
    assert {row.trajectory.prompt_id for row in rows(drawn)} == {"p0"} and drawn.consumed == []
    assert buffer.ready_groups == 1
    with pytest.raises(ValueError, match=r"replay\.mode=episode draws only what a step consumes"):
        make_buffer("episode").sample(batch_size=8)


def test_every_row_says_what_the_importance_correction_needs():
    buffer = make_buffer(priority_exponent=1.0)
    buffer.insert(batch_of(*(make_group(f"p{i}", rewards=[1, 0, 0]) for i in range(50))))
    drawn = rows(buffer.sample(batch_size=20_000))
    weights = np.array([1 / (row.table_size * row.probability) for row in drawn])
    advantages = np.array([abs(row.trajectory.advantage) for row in drawn])
    assert (weights * advantages).mean() == pytest.approx(np.mean([2 / 3, 1 / 3, 1 / 3]), rel=0.02)  # the mean over the table
