"""The actor's plain class on one event loop, without Ray: what goes on beside what, and what a failed or cancelled write leaves."""

import asyncio
import errno
import threading

import numpy as np
import pytest

from algorithms.schema import sampled_from_arrow, to_record_batch
from conf.schema import ReplayConfig, ReplayMode
from replay import actor as actor_module
from replay.actor import ReplayActor
from replay.drawn import Drawn
from replay.durable import DurableReplay
from tests.fakes import make_group

PlainActor = ReplayActor.__ray_metadata__.modified_class


def start(journal=None, **settings):
    config = ReplayConfig(**{"mode": ReplayMode.prioritized, "timeout_s": 10.0, **settings})
    return PlainActor(config, seed=0, journal=None if journal is None else str(journal))


def batch_of(*names):
    return to_record_batch([t for name in names for t in make_group(name, rewards=[1, 0, 0, 1]).trajectories])


def test_a_slow_reader_blocks_no_writer(monkeypatch):
    monkeypatch.setattr(actor_module, "READ_AT_ONCE", 0)
    go_on, copy = threading.Event(), Drawn.read

    def slow(drawn):
        assert go_on.wait(30)
        return copy(drawn)

    async def main():
        actor = start(max_trajectories=8)
        await actor.insert(batch_of("p0", "p1"))
        monkeypatch.setattr(Drawn, "read", slow)
        reading = [asyncio.ensure_future(actor.sample(batch_size=32)) for _ in range(4)]  # twice as many as there are threads
        await asyncio.sleep(0.05)
        for i in range(5):  # all that was drawn leaves meanwhile
            await asyncio.wait_for(actor.insert(batch_of(f"q{i}", f"r{i}")), 10)
            await asyncio.wait_for(actor.update_priorities(np.array([1]), np.array([0.5])), 10)
        assert not any(task.done() for task in reading)
        go_on.set()
        for _, shard in await asyncio.gather(*reading):
            names = {row.trajectory.response_text for row in sampled_from_arrow(shard.rows)}
            assert names <= {f"response {i} to p{j}@0" for i in range(4) for j in range(2)}

    asyncio.run(main())


def test_a_write_is_carried_through_though_its_insert_is_cancelled(tmp_path, monkeypatch):
    monkeypatch.setattr(actor_module, "WRITE_AT_ONCE", 0)
    begun, go_on, write = threading.Event(), threading.Event(), DurableReplay.write

    def slow(replay, admitted):
        begun.set()
        assert go_on.wait(30)
        write(replay, admitted)

    async def main():
        actor = start(tmp_path)
        monkeypatch.setattr(DurableReplay, "write", slow)
        inserting = asyncio.ensure_future(actor.insert(batch_of("p0")))
        assert await asyncio.to_thread(begun.wait, 30)
        inserting.cancel()
        drawing = asyncio.ensure_future(actor.sample(batch_size=4))  # waits behind the write
        await asyncio.sleep(0.05)
        assert not drawing.done() and (await actor.health())["role"] == "replay"
        go_on.set()
        _, shard = await drawing
        actor._replay.close()
        return shard.rows["key"].to_pylist()

    keys = asyncio.run(main())
    again = DurableReplay(ReplayConfig(mode=ReplayMode.prioritized), seed=0, folder=tmp_path)
    assert len(keys) == 4 == len(again.buffer)  # memory and journal agree
    again.close()


def test_a_failed_write_leaves_nothing_and_the_next_insert_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(actor_module, "WRITE_AT_ONCE", 0)
    write = DurableReplay.write

    def full(replay, admitted):
        raise OSError(errno.EIO, "Input/output error")

    async def main():
        actor = start(tmp_path)
        monkeypatch.setattr(DurableReplay, "write", full)
        with pytest.raises(OSError, match="Input/output"):
            await actor.insert(batch_of("p0"))
        monkeypatch.setattr(DurableReplay, "write", write)
        assert (await actor.insert(batch_of("p0"))).admitted == 4
        assert (await actor.stats())["size"] == 4
        actor._replay.close()

    asyncio.run(main())


def test_the_journal_is_compacted_beside_other_calls(tmp_path, monkeypatch):
    monkeypatch.setattr("replay.durable.MIN_COMPACTION_BYTES", 20_000)

    async def main():
        actor = start(tmp_path, max_trajectories=16)
        for i in range(60):
            await actor.insert(batch_of(f"p{i}"))
        while actor._compacting is not None:
            await asyncio.sleep(0.01)
        drawn = (await actor.sample(batch_size=64))[1].rows
        actor._replay.close()
        return drawn

    asyncio.run(main())
    assert list(tmp_path.glob("base-*"))
    again = DurableReplay(ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=16), seed=0, folder=tmp_path)
    assert again.buffer.stats()["groups_inserted"] == 60 and len(again.buffer) == 16
    again.close()


def test_a_restore_waits_for_the_base_that_is_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr("replay.durable.MIN_COMPACTION_BYTES", 20_000)
    begun, go_on, finish = threading.Event(), threading.Event(), DurableReplay.finish_compaction

    def slow(replay, *arguments):
        begun.set()
        assert go_on.wait(30)
        finish(replay, *arguments)

    async def main():
        other = start()
        await other.insert(batch_of("x0", "x1", "x2"))
        await other.snapshot(str(tmp_path / "snapshot"))
        actor = start(tmp_path / "journal", max_trajectories=16)
        monkeypatch.setattr(DurableReplay, "finish_compaction", slow)
        for i in range(40):
            await actor.insert(batch_of(f"p{i}"))
            if await asyncio.to_thread(begun.wait, 0.05):
                break
        assert begun.is_set()
        restoring = asyncio.ensure_future(actor.restore(str(tmp_path / "snapshot")))
        await asyncio.wait_for(actor.insert(batch_of("while it waits")), 10)
        assert not restoring.done()
        go_on.set()
        await restoring
        actor._replay.close()

    asyncio.run(main())
    again = DurableReplay(ReplayConfig(mode=ReplayMode.prioritized, max_trajectories=16), seed=0, folder=tmp_path / "journal")
    assert again.buffer.stats()["groups_inserted"] == 3 and len(again.buffer) == 12
    again.close()


def slow_rows(monkeypatch):
    """Make the rows' writes wait for a sign."""
    monkeypatch.setattr("replay.durable.ROWS_FIRST_BYTES", 4_000)  # batches of two groups
    begun, go_on, write = threading.Event(), threading.Event(), DurableReplay.write_rows

    def slow(replay, prepared):
        begun.set()
        assert go_on.wait(30)
        return write(replay, prepared)

    monkeypatch.setattr(DurableReplay, "write_rows", slow)
    return begun, go_on


def test_rows_are_written_beside_other_calls_and_inserts_keep_their_order(tmp_path, monkeypatch):
    begun, go_on = slow_rows(monkeypatch)

    async def main():
        actor = start(tmp_path)
        await actor.insert(batch_of("p0"))
        large = asyncio.ensure_future(actor.insert(batch_of("p1", "p2")))
        assert await asyncio.to_thread(begun.wait, 30)
        small = asyncio.ensure_future(actor.insert(batch_of("p3")))
        await asyncio.wait_for(actor.sample(batch_size=4), 10)  # the door isn't shut
        await asyncio.sleep(0.05)
        assert not large.done() and not small.done()
        go_on.set()
        await asyncio.gather(large, small)
        storage = actor._buffer.capture().storage
        actor._replay.close()
        return storage.gather(storage.places).column("prompt_id").to_pylist()[::4]

    assert asyncio.run(main()) == ["p0", "p1", "p2", "p3"]
    again = DurableReplay(ReplayConfig(mode=ReplayMode.prioritized), seed=0, folder=tmp_path)
    assert len(again.buffer) == 16
    again.close()


def test_an_insert_that_finds_the_disk_full_holds_up_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("replay.durable.ROWS_FIRST_BYTES", 4_000)
    has_room, write = threading.Event(), DurableReplay.write_rows

    def full(replay, prepared):
        if not has_room.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(replay, prepared)

    async def main():
        actor = start(tmp_path)
        monkeypatch.setattr(DurableReplay, "write_rows", full)
        large = asyncio.ensure_future(actor.insert(batch_of("p0", "p1")))
        await asyncio.wait_for(actor.insert(batch_of("p2")), 5)
        assert not large.done()
        has_room.set()
        assert (await asyncio.wait_for(large, 10)).groups == 2
        actor._replay.close()

    asyncio.run(main())
    again = DurableReplay(ReplayConfig(mode=ReplayMode.prioritized), seed=0, folder=tmp_path)
    assert len(again.buffer) == 12
    again.close()


@pytest.mark.parametrize("ending", ["cancelled", "late"])
def test_rows_that_do_not_come_in_hold_up_nothing(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("replay.durable.MIN_COMPACTION_BYTES", 4)
    begun, go_on = slow_rows(monkeypatch)

    async def main():
        actor = start(tmp_path, mode=ReplayMode.fresh, max_trajectories=10)
        await actor.insert(batch_of("p0"))
        inserting = asyncio.ensure_future(actor.insert(batch_of("p1", "p2"), timeout_s=0.05))
        assert await asyncio.to_thread(begun.wait, 30)
        if ending == "cancelled":
            inserting.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError if ending == "cancelled" else TimeoutError):
            await inserting
        while actor._replay._rows.num_bytes and not actor._replay._rows.settled():
            await asyncio.sleep(0.01)
        await asyncio.wait_for(actor.insert(batch_of("p3")), 10)
        for _ in range(2):  # a base may have been begun before the rows were given up
            while actor._compacting is not None:
                await asyncio.sleep(0.01)
            actor._compact_if_due()
        await actor._compacting
        actor._replay.close()

    asyncio.run(main())
    assert not (tmp_path / "rows-00000000.journal").exists()  # a base has won their room back
    again = DurableReplay(ReplayConfig(mode=ReplayMode.fresh, max_trajectories=10), seed=0, folder=tmp_path)
    assert again.buffer.stats()["groups_inserted"] == 2
    again.close()
