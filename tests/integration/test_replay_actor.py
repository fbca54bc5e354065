"""The replay actor on a real Ray cluster."""

import hashlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from algorithms.schema import SAMPLE_SCHEMA, attached_images, sampled_from_arrow, to_record_batch
from algorithms.types import ImageRef
from conf.schema import ReplayConfig, ReplayMode
from replay import client
from replay.actor import ReplayActor
from replay.client import ReplayReader, ReplayWriter
from replay.lent import LentMemoryError, Letter, Place
from replay.snapshot import SnapshotError
from tests.fakes import make_group, make_trajectory


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=128 * 2**20, namespace="test_replay_actor")
    yield
    ray.shutdown()


@pytest.fixture
def start():
    actors = []

    def start_actor(mode="episode", *, seed=0, journal=None, **settings):
        config = ReplayConfig(**{"mode": ReplayMode(mode), "timeout_s": 30.0, **settings})
        actors.append(ReplayActor.options(num_cpus=0, max_restarts=-1, max_task_retries=5).remote(config, seed=seed, journal=journal))
        return actors[-1]

    yield start_actor
    for actor in actors:
        ray.kill(actor)


def groups_of(names, **others):
    return to_record_batch([t for name in names for t in make_group(name, **{"rewards": [1, 0, 0, 1], **others}).trajectories])


def request(num_groups, **others):
    return {"num_updates": 2, "batch_size": 16, "num_shards": 2, "policy_version": 1, "num_groups": num_groups, **others}


@ray.remote(num_cpus=0.1)
def roll_out(replay, names):
    return [ray.get(replay.insert.remote(groups_of([name]))) for name in names]


@ray.remote(num_cpus=0.1)
def learn(shard):
    """A learner rank's view of its rows."""
    assert shard.schema.equals(SAMPLE_SCHEMA, check_metadata=True)
    return [(row.trajectory.trajectory_id, row.update, row.trajectory.response_text) for row in sampled_from_arrow(shard)]


def test_two_rollout_tasks_feed_a_sample_that_waits(start):
    replay = start()
    stats, *shards = replay.sample.options(num_returns=3).remote(**request(8))
    receipts = ray.get([roll_out.remote(replay, [f"{who}{i}" for i in range(4)]) for who in "ab"], timeout=30)
    assert sum(receipt.groups for part in receipts for receipt in part) == 8
    assert ray.get(stats, timeout=30)["replay/drawn"] == 32
    ranks = ray.get([learn.remote(shard) for shard in shards], timeout=60)  # references only: the rows never come here
    assert sum(map(len, ranks)) == 32
    assert all(sum(update == u for rank in ranks for _, update, _ in rank) == 16 for u in range(2))
    prompts = [{name.split("@")[0] for name, _, _ in rank} for rank in ranks]
    assert set().union(*prompts) <= {f"{who}{i}" for who in "ab" for i in range(4)}
    assert all(text == f"response {name[-1]} to {name[:-2]}" for rank in ranks for name, _, text in rank)


def test_an_insert_into_a_full_buffer_waits_until_a_draw_makes_room(start):
    replay = start(max_trajectories=8)
    ray.get(replay.insert.remote(groups_of(["p0", "p1"])), timeout=30)
    blocked = replay.insert.remote(groups_of(["p2"]))
    assert ray.wait([blocked], timeout=0.5)[0] == []
    assert ray.get(replay.health.remote(), timeout=5)["waiting_inserts"] == 1
    ray.get(replay.sample.options(num_returns=3).remote(**request(2)), timeout=30)
    assert ray.get(blocked, timeout=30).groups == 1
    ray.get(replay.insert.remote(groups_of(["p3"])), timeout=30)
    with pytest.raises(TimeoutError, match=r"waited 0.2 s for room for 4 trajectories: it is full of 2 groups"):
        ray.get(replay.insert.remote(groups_of(["p4"]), timeout_s=0.2), timeout=30)


def test_the_deadline_names_what_was_missing(start):
    replay = start()
    ray.get(replay.insert.remote(groups_of(["p0", "p1"])), timeout=30)
    with pytest.raises(TimeoutError, match=r"waited 0.3 s for 5 fresh groups from the rollout actors, 2 were there"):
        ray.get(replay.sample.options(num_returns=3).remote(**request(5, timeout_s=0.3)), timeout=30)
    assert ray.get(replay.stats.remote(), timeout=30)["ready_groups"] == 2  # nothing was consumed


def test_the_deadline_of_the_settings_holds(start):
    replay = start(timeout_s=0.2)
    with pytest.raises(TimeoutError, match=r"waited 0.2 s for 1 fresh groups"):
        ray.get(replay.sample.options(num_returns=3).remote(**request(1)), timeout=30)


def test_control_calls_answer_while_samples_wait(start):
    replay = start()
    ray.get(replay.health.remote(), timeout=30)
    waiting = [replay.sample.options(num_returns=3).remote(**request(2)) for _ in range(3)]
    deadline = time.monotonic() + 10
    while ray.get(replay.health.remote(), timeout=5)["waiting_samples"] < 3:
        assert time.monotonic() < deadline
    begin = time.monotonic()
    stats = ray.get(replay.stats.remote(), timeout=5)
    assert time.monotonic() - begin < 1.0
    assert (stats["waiting_samples"], stats["ready_groups"], stats["size"]) == (3, 0, 0)
    assert ray.get(replay.health.remote(), timeout=5)["name"] == f"ReplayActor(mode=episode, node={ray.util.get_node_ip_address()})"
    for i in range(3):  # each pair of groups frees one sample
        ray.get(replay.insert.remote(groups_of([f"p{i}", f"q{i}"])), timeout=30)
    assert [ray.get(stats, timeout=30)["rollout/groups"] for stats, *_ in waiting] == [2, 2, 2]


def test_control_calls_answer_while_a_large_snapshot_is_written(start, tmp_path):
    replay = start("none")
    for i in range(8):
        ray.get(replay.insert.remote(groups_of([f"p{8 * i + j}" for j in range(8)], response_tokens=20_000)), timeout=60)
    writing = replay.snapshot.remote(str(tmp_path))
    slowest = 0.0
    while not ray.wait([writing], timeout=0)[0]:
        begin = time.monotonic()
        ray.get(replay.health.remote(), timeout=10)
        slowest = max(slowest, time.monotonic() - begin)
    ray.get(writing, timeout=60)
    assert slowest < 1.0


def test_snapshot_and_restore_between_actors(start, tmp_path):
    first, second = start("fresh"), start("fresh", seed=7)
    ray.get(first.insert.remote(groups_of(["p0", "p1", "p2"])), timeout=30)
    ray.get(first.sample.options(num_returns=3).remote(**request(2)), timeout=30)
    ray.get(first.snapshot.remote(str(tmp_path)), timeout=30)
    ray.get(second.restore.remote(str(tmp_path)), timeout=30)
    drawn = [ray.get(actor.sample.options(num_returns=3).remote(**request(1)), timeout=30) for actor in (first, second)]
    assert all(one.equals(other) for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))
    assert ray.get(second.update_priorities.remote(drawn[0][1]["key"].to_numpy(), drawn[0][1]["probability"].to_numpy()), timeout=30) >= 1


def test_a_killed_actor_comes_back_with_its_rows_and_draws_on(start, tmp_path):
    straight, killed = (start("fresh", seed=3, journal=str(tmp_path / name)) for name in ("straight", "killed"))
    for step in range(6):
        drawn = []
        for replay in (straight, killed):
            ray.get(replay.insert.remote(groups_of([f"p{step}", f"q{step}"])), timeout=60)
            drawn.append(ray.get(replay.sample.options(num_returns=3).remote(**request(2)), timeout=60))
        assert all(one.equals(other) for one, other in zip(drawn[0][1:], drawn[1][1:], strict=True))
        if step in (1, 3):
            os.kill(ray.get(killed.health.remote(), timeout=30)["pid"], signal.SIGKILL)
    assert ray.get(killed.stats.remote(), timeout=30)["groups_inserted"] == 12
    # an insert whose answer was lost is sent again by Ray and counts once
    assert ray.get(killed.insert.remote(groups_of(["p0"])), timeout=30).duplicate_groups == 1


def test_control_calls_answer_within_100_ms_under_full_load(start):
    replay = start("prioritized", max_bytes=50_000_000)
    batches = [groups_of([f"{i}-{j}" for j in range(64)], response_tokens=2000) for i in range(4)]
    ray.get([replay.insert.remote(batch) for batch in batches], timeout=60)

    @ray.remote(num_cpus=0.1)
    def load(replay, batch, stop_at):
        while time.time() < stop_at:
            ray.get(replay.insert.remote(batch), timeout=60)
            ray.get(replay.sample.remote(batch_size=256), timeout=60)

    stop_at = time.time() + 6
    working = [load.remote(replay, batch, stop_at) for batch in batches[:2]]
    took = []
    while time.time() < stop_at:
        begin = time.monotonic()
        ray.get([replay.health.remote(), replay.stats.remote()], timeout=10)
        took.append(time.monotonic() - begin)
        time.sleep(0.02)
    ray.get(working, timeout=60)
    assert sorted(took)[int(0.9 * len(took))] < 0.1, sorted(took)[-5:]  # nine of ten, so that a busy machine is no failure


def test_images_travel_with_the_rows_that_show_them(start):
    content = b"pixels" * 100
    name = hashlib.sha256(content).hexdigest()
    replay = start("prioritized")
    batch = groups_of(["p0"], images=(ImageRef(path="p0.png", sha256=name),))
    ray.get(replay.insert.remote(batch, images={name: content}), timeout=30)
    _, shard = ray.get(replay.sample.options(num_returns=2).remote(batch_size=8), timeout=30)
    assert attached_images(shard) == {name: content}


def test_a_writer_sends_together_what_piles_up_and_a_reader_draws_ahead(start):
    replay = start("prioritized")
    writer = ReplayWriter(replay)
    futures = [writer.insert(groups_of([f"p{i}"])) for i in range(200)]
    bad = writer.insert(to_record_batch([make_trajectory(prompt_id="bad", reward=float("nan"))]))
    futures += [writer.insert(groups_of([f"q{i}"])) for i in range(50)]
    assert all(done.result(timeout=60).groups >= 1 for done in futures)
    with pytest.raises(ValueError, match="which isn't finite"):
        bad.result(timeout=60)
    stats = ray.get(replay.stats.remote(), timeout=30)
    assert (stats["groups_inserted"], stats["size"], stats["duplicate_groups"]) == (250, 1000, 0)
    batches = list(itertools.islice(ReplayReader(replay, batch_size=4, prefetch=2, block=32), 40))
    assert all(batch.num_rows == 4 and batch.schema.equals(SAMPLE_SCHEMA, check_metadata=True) for batch in batches)
    keys = batches[0]["key"].to_numpy()
    updates = [writer.update_priorities(keys, np.full(4, value)) for value in (0.3, 0.0)]  # of several the last one counts
    assert sum(done.result(timeout=60) for done in updates) >= 8
    drawn = ray.get(replay.sample.options(num_returns=2).remote(batch_size=4000), timeout=60)[1]
    assert not set(keys) & set(drawn["key"].to_pylist())
    writer.close()


def test_a_client_keeps_to_the_bounds_of_replay_whatever_piles_up(start):
    replay = start("prioritized", min_size=8, samples_per_insert=1.0, samples_per_insert_error=32.0, max_trajectories=400)
    writer, reader = ReplayWriter(replay, timeout_s=60.0), iter(ReplayReader(replay, batch_size=4, timeout_s=60.0))
    futures = [writer.insert(groups_of([f"p{i}"])) for i in range(60)]  # 240 rows: calls of all of them could never go
    for _ in range(44):
        assert next(reader).num_rows == 4
    assert sum(done.done() for done in futures) >= 40
    stats = ray.get(replay.stats.remote(), timeout=30)
    assert stats["sampled"] >= 176 and abs(stats["inserted"] - 8 - stats["sampled"]) <= 32
    del reader
    while not all(done.done() for done in futures):  # draws let the rest in
        ray.get(replay.sample.options(num_returns=2).remote(batch_size=4), timeout=30)
    writer.close()


def test_a_writer_that_nobody_uses_ends_though_its_actor_never_starts():
    nowhere = ReplayActor.options(num_cpus=1000).remote(ReplayConfig(), seed=0)
    closing = threading.Thread(target=ReplayWriter(nowhere, timeout_s=120.0).close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    ray.kill(nowhere)


def test_a_client_bounds_its_calls_by_bytes(start, monkeypatch):
    monkeypatch.setattr(client, "BLOCK_BYTES", 100_000)
    monkeypatch.setattr(client, "FIRST_ROWS", 8)
    replay = start("prioritized")
    writer = ReplayWriter(replay)
    receipts = [done.result(timeout=60) for done in [writer.insert(groups_of([f"p{i}"], response_tokens=1500)) for i in range(40)]]
    writer.close()
    assert max(receipt.groups for receipt in receipts) <= 2  # of four rows of 13 KB
    reader = ReplayReader(replay, batch_size=2)
    assert len(list(itertools.islice(reader, 20))) == 20
    reader.close()
    assert 40 <= ray.get(replay.stats.remote(), timeout=30)["sampled"] < 80


def test_large_rows_pass_through_lent_memory_and_stay_whole(start):
    replay = start("prioritized")
    folder, places = Path("/dev/shm"), "rethinker-replay-*/*.places"
    others = set(folder.glob(places))  # of whoever else works on this machine

    def lent():
        return set(folder.glob(places)) - others

    writer = ReplayWriter(replay, block_rows=32)
    long = [groups_of([f"p{i}", f"q{i}"], response_tokens=1500 + i) for i in range(16)]  # half a megabyte for 32 rows
    inserted = {row["trajectory_id"]: row["response_token_ids"] for batch in long for row in batch.to_pylist()}
    assert sum(done.result(timeout=60).groups for done in [writer.insert(batch) for batch in long]) >= 32
    (of_writer,) = lent()
    reader = ReplayReader(replay, batch_size=32, prefetch=2, block=32)
    held = list(itertools.islice(reader, 14))  # more than there are places: some take the object store
    assert len(lent()) == 2
    drawn = [row for table in held for row in table.select(["trajectory_id", "response_token_ids"]).to_pylist()]
    assert len(drawn) == 14 * 32 and all(inserted[row["trajectory_id"]] == row["response_token_ids"] for row in drawn)
    writer.close()
    reader.close()
    assert not lent() and not of_writer.exists()
    assert held[0]["response_token_ids"].to_pylist() == [inserted[name] for name in held[0]["trajectory_id"].to_pylist()]


def test_a_place_that_is_not_there_is_refused_before_anything_is_drawn(start):
    replay = start("prioritized")
    ray.get(replay.insert.remote(groups_of(["p"])))
    nowhere = Place("/dev/shm/rethinker-replay-none/0.places", 0, 2**20)
    assert not ray.get(replay.borrows.remote(nowhere), timeout=30)
    before = ray.get(replay.stats.remote(), timeout=30)
    for call in (
        replay.sample.options(num_returns=2).remote(batch_size=4, into=nowhere)[1],
        replay.insert.remote(Letter(b"", nowhere, ())),
    ):
        with pytest.raises(LentMemoryError, match=r"0\.places can't be used"):
            ray.get(call, timeout=30)
    assert ray.get(replay.stats.remote(), timeout=30) == before


def test_draws_wait_for_rows_and_inserts_for_draws(start):
    replay = start("prioritized", min_size=8, samples_per_insert=1.0, samples_per_insert_error=8.0)
    with pytest.raises(TimeoutError, match=r"waited 0.3 s for 4 draws: 0 of 0 trajectories have a priority"):
        ray.get(replay.sample.options(num_returns=2).remote(batch_size=4, timeout_s=0.3), timeout=30)
    waiting, _ = replay.sample.options(num_returns=2).remote(batch_size=4)
    ray.get([replay.insert.remote(groups_of([name])) for name in ("p0", "p1")], timeout=30)
    assert ray.get(waiting, timeout=30)["replay/drawn"] == 4
    ray.get(replay.insert.remote(groups_of(["p2", "p3"])), timeout=30)
    with pytest.raises(TimeoutError, match=r"room for 8 trajectories: .* 16 inserted, 4 drawn, .*=1 with an error of 8"):
        ray.get(replay.insert.remote(groups_of(["p4", "p5"]), timeout_s=0.3), timeout=30)


def test_a_restore_wakes_a_sample(start, tmp_path):
    first, second = start(), start()
    ray.get(first.insert.remote(groups_of(["p0"])), timeout=30)
    ray.get(first.snapshot.remote(str(tmp_path)), timeout=30)
    stats, *_ = second.sample.options(num_returns=3).remote(**request(1))
    ray.get(second.restore.remote(str(tmp_path)), timeout=30)
    assert ray.get(stats, timeout=30)["rollout/groups"] == 1


def test_errors_reach_the_caller_and_the_actor_lives_on(start, tmp_path):
    replay = start()
    with pytest.raises(SnapshotError, match="is missing"):
        ray.get(replay.restore.remote(str(tmp_path)), timeout=30)
    with pytest.raises(ValueError, match="not a trajectory schema"):
        ray.get(replay.insert.remote(pa.RecordBatch.from_pydict({"a": [1]})), timeout=30)
    assert ray.get(replay.insert.remote(groups_of(["p0"])), timeout=30).admitted == 4
