"""Who may go when: the limiter.

Owns the waiting of samples for fresh groups, woken by inserts and bounded by a deadline. Must not know rows, draws or Ray. One event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class FreshGroupLimiter:
    """Lets a sample go once enough fresh groups are there.

    Args:
        ready_groups: tells how many groups no step has consumed yet.
    """

    def __init__(self, ready_groups: Callable[[], int]) -> None:
        self._ready_groups = ready_groups
        self._changed = asyncio.Condition()
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        """Samples that wait now."""
        return self._num_waiting

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Hold the content alone while it changes, then wake the samples that wait."""
        async with self._changed:
            yield
            self._changed.notify_all()

    @asynccontextmanager
    async def fresh_groups(self, num_groups: int, *, timeout_s: float) -> AsyncIterator[None]:
        """Wait until fresh groups are there, then hold the content alone.

        Args:
            num_groups: how many.
            timeout_s: how long to wait.

        Raises:
            TimeoutError: says how many groups were waited for and how many were there.
        """
        async with self._changed:
            self._num_waiting += 1
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait_for(lambda: self._ready_groups() >= num_groups)
            except TimeoutError as error:
                raise TimeoutError(
                    f"replay waited {timeout_s:g} s for {num_groups} fresh groups from the rollout actors, "
                    f"{self._ready_groups()} were there"
                ) from error
            finally:
                self._num_waiting -= 1
            yield
