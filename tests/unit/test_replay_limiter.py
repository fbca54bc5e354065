"""The limiter: samples wait for fresh groups, inserts wake them, deadlines say what was there."""

import asyncio

import pytest

from replay.limiter import FreshGroupLimiter


class Groups:
    """A count of fresh groups behind a limiter."""

    def __init__(self):
        self.ready_groups = 0
        self.limiter = FreshGroupLimiter(self)

    @property
    def waiting_groups(self):
        return self.ready_groups + self.behind

    next_missing_turn = 7
    behind = 0

    async def add(self, num):
        async with self.limiter.change():
            self.ready_groups += num

    async def take(self, num, *, timeout_s=5.0):
        async with self.limiter.fresh_groups(num, timeout_s=timeout_s):
            self.ready_groups -= num


def test_enough_groups_need_no_wait():
    async def scene():
        groups = Groups()
        await groups.add(3)
        await groups.take(2, timeout_s=0.0)
        return groups.ready_groups

    assert asyncio.run(scene()) == 1


def test_an_insert_wakes_a_sample_and_not_before_enough_are_there():
    async def scene():
        groups = Groups()
        sample = asyncio.create_task(groups.take(3))
        seen = []
        for _ in range(3):
            await groups.add(1)
            for _ in range(5):
                await asyncio.sleep(0)
            seen.append((sample.done(), groups.limiter.num_waiting))
        return seen, groups.ready_groups

    assert asyncio.run(scene()) == ([(False, 1), (False, 1), (True, 0)], 0)


def test_groups_are_not_given_twice():
    async def scene():
        groups = Groups()
        samples = [asyncio.create_task(groups.take(2, timeout_s=0.05)) for _ in range(3)]
        await asyncio.sleep(0)
        await groups.add(5)
        return [type(result) for result in await asyncio.gather(*samples, return_exceptions=True)], groups.ready_groups

    results, left = asyncio.run(scene())
    assert sorted(map(str, results)) == sorted(map(str, [type(None), type(None), TimeoutError]))
    assert left == 1


def test_the_deadline_says_what_was_waited_for_and_what_was_there():
    async def scene():
        groups = Groups()
        await groups.add(1)
        with pytest.raises(TimeoutError, match=r"waited 0.01 s for 4 fresh groups from the rollout actors, 1 were there"):
            await groups.take(4, timeout_s=0.01)
        await groups.add(3)
        await groups.take(4)  # the limiter works on after a deadline
        return groups.ready_groups, groups.limiter.num_waiting

    assert asyncio.run(scene()) == (0, 0)


def test_an_error_while_holding_frees_the_limiter():
    async def scene():
        groups = Groups()
        await groups.add(1)
        with pytest.raises(RuntimeError, match="boom"):
            async with groups.limiter.fresh_groups(1, timeout_s=1):
                raise RuntimeError("boom")
        await groups.take(1, timeout_s=1)
        return groups.ready_groups

    assert asyncio.run(scene()) == 0


class Shelf:
    """A buffer of a few places behind a limiter."""

    def __init__(self, capacity):
        self.capacity, self.ready_groups = capacity, 0
        self.limiter = FreshGroupLimiter(self)

    @property
    def waiting_groups(self):
        return self.ready_groups

    async def put(self, num, *, timeout_s=5.0):
        async with self.limiter.room(lambda: self.ready_groups + num <= self.capacity, num_trajectories=num, timeout_s=timeout_s):
            self.ready_groups += num

    async def take(self, num, *, timeout_s=5.0):
        async with self.limiter.fresh_groups(num, timeout_s=timeout_s):
            self.ready_groups -= num


def test_a_full_buffer_makes_an_insert_wait_until_a_sample_makes_room():
    async def scene():
        shelf = Shelf(4)
        await shelf.put(4)
        insert = asyncio.create_task(shelf.put(2))
        await asyncio.sleep(0.01)
        blocked = (insert.done(), shelf.limiter.num_blocked)
        await shelf.take(3)
        await asyncio.wait_for(insert, 1.0)
        return blocked, shelf.ready_groups, shelf.limiter.num_blocked

    assert asyncio.run(scene()) == ((False, 1), 3, 0)


def test_an_insert_that_finds_no_room_says_what_filled_the_buffer():
    async def scene():
        shelf = Shelf(4)
        await shelf.put(3)
        with pytest.raises(TimeoutError, match=r"0\.02 s for room for 2 trajectories: it is full of 3 groups") as caught:
            await shelf.put(2, timeout_s=0.02)
        assert "replay.max_trajectories" in str(caught.value)
        return shelf.ready_groups, shelf.limiter.num_blocked

    assert asyncio.run(scene()) == (3, 0)


def test_samples_and_inserts_that_need_each_other_all_go():
    async def scene():
        shelf = Shelf(3)
        inserts = [asyncio.create_task(shelf.put(1)) for _ in range(60)]
        samples = [asyncio.create_task(shelf.take(2)) for _ in range(30)]
        await asyncio.wait_for(asyncio.gather(*inserts, *samples), 5.0)
        return shelf.ready_groups

    assert asyncio.run(scene()) == 0


def test_the_deadline_names_the_turn_that_is_missing():
    async def scene():
        groups = Groups()
        groups.behind = 3
        await groups.add(1)
        with pytest.raises(TimeoutError, match="1 were there, and 3 behind turn 7, which is missing"):
            await groups.take(2, timeout_s=0.01)

    asyncio.run(scene())
