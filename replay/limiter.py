"""Who may go when: the limiter.

Owns the waiting of samples for fresh groups and of inserts for room, woken by each other and bounded by deadlines. Must not know rows,
draws or Ray. One event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol


class GroupQueue(Protocol):
    """What a limiter looks at (see ReplayBuffer)."""

    @property
    def ready_groups(self) -> int:
        """Groups that a step could consume now."""

    @property
    def waiting_groups(self) -> int:
        """Groups that are there in all, those behind a missing turn included."""

    @property
    def next_missing_turn(self) -> int:
        """The first turn that no group has come for."""


class FreshGroupLimiter:
    """Lets a sample go once what it needs is there, and an insert once there is room.

    Args:
        queue: whose groups a sample waits for.
    """

    def __init__(self, queue: GroupQueue) -> None:
        self._queue = queue
        self._changed = asyncio.Condition()
        self._waiting = {"samples": 0, "inserts": 0}

    @property
    def num_waiting(self) -> int:
        """Samples that wait now."""
        return self._waiting["samples"]

    @property
    def num_blocked(self) -> int:
        """Inserts that wait for room now."""
        return self._waiting["inserts"]

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Hold the content alone while it changes, then wake whoever waits."""
        async with self._changed:
            yield
            self._changed.notify_all()

    @asynccontextmanager
    async def fresh_groups(self, num_groups: int, *, timeout_s: float) -> AsyncIterator[None]:
        """Wait until fresh groups are there, then hold the content alone and wake the inserts that wait for room.

        Args:
            num_groups: how many.
            timeout_s: how long to wait.

        Raises:
            TimeoutError: says how many groups were waited for and how many were there.
        """
        async with self._changed:
            if not await self._wait("samples", lambda: self._queue.ready_groups >= num_groups, timeout_s):
                raise TimeoutError(
                    f"replay waited {timeout_s:g} s for {num_groups} fresh groups from the rollout actors, "
                    f"{self._queue.ready_groups} were there{self._behind_the_gap()}"
                )
            yield
            self._changed.notify_all()

    @asynccontextmanager
    async def rows(self, are_there: Callable[[], bool], *, describe: Callable[[], str], timeout_s: float) -> AsyncIterator[None]:
        """Wait until rows can be drawn that no group must be consumed for, then hold the content alone.

        Args:
            are_there: tells whether the draws may be made now.
            describe: says what is waited for and what is there.
            timeout_s: how long to wait.

        Raises:
            TimeoutError: with that.
        """
        async with self._changed:
            if not await self._wait("samples", are_there, timeout_s):
                raise TimeoutError(f"replay waited {timeout_s:g} s for {describe()}")
            yield
            self._changed.notify_all()

    @asynccontextmanager
    async def room(
        self, is_there: Callable[[], bool], *, num_trajectories: int, timeout_s: float, describe: Callable[[], str] | None = None
    ) -> AsyncIterator[None]:
        """Wait until there is room, then hold the content alone while it changes and wake the samples that wait.

        Args:
            is_there: tells whether the trajectories fit now.
            num_trajectories: to insert.
            timeout_s: how long to wait.
            describe: says what was there, if it isn't the groups that wait which fill the buffer.

        Raises:
            TimeoutError: says how many trajectories waited and how many groups fill the buffer.
        """
        async with self._changed:
            if not await self._wait("inserts", is_there, timeout_s):
                raise TimeoutError(
                    f"replay waited {timeout_s:g} s for room for {num_trajectories} trajectories: "
                    + (
                        describe()
                        if describe is not None
                        else f"it is full of {self._queue.waiting_groups} groups that no step has consumed yet; the learner doesn't "
                        f"keep up, or replay.max_trajectories is too small"
                    )
                )
            yield
            self._changed.notify_all()

    def _behind_the_gap(self) -> str:
        behind = self._queue.waiting_groups - self._queue.ready_groups
        return f", and {behind} behind turn {self._queue.next_missing_turn}, which is missing" if behind else ""

    async def _wait(self, who: str, until: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a change after which it holds; False past the deadline."""
        self._waiting[who] += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait_for(until)
        except TimeoutError:
            return False
        finally:
            self._waiting[who] -= 1
        return True
