"""An event loop whose waits cost nothing and whose computing costs what it costs: for simulations of a cluster on one core.

When nothing is ready the clock jumps to the next timer; while something runs the clock goes on with the process's CPU time. What is
computed for real (the controller, admission, the ledger) is charged as on a driver with one core, what is only waited for is free.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Never waits: an idle second is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped = 0.0

    def select(self, timeout: float | None = None) -> list:
        """See selectors.BaseSelector."""
        if timeout is None:
            raise RuntimeError("the simulation waits for something that no timer brings about")
        self.jumped += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jump = _Jump()
        self._began = time.process_time()
        self._free_s = 0.0
        self.charged_s = 0.0
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds of the simulation."""
        return self._jump.jumped + self.charged_s + self.cpu_s

    @property
    def cpu_s(self) -> float:
        """Seconds that this process has computed for the simulation."""
        return time.process_time() - self._began - self._free_s

    def charge(self, seconds: float) -> None:
        """Let the driver be busy: with what it would do and the simulation leaves out.

        Args:
            seconds: measured elsewhere.
        """
        self.charged_s += seconds

    def excuse(self, seconds: float) -> None:
        """Take computing back that no driver would do: what the fakes need.

        Args:
            seconds: of CPU time.
        """
        self._free_s += seconds


def simulate(work: Coroutine[Any, Any, T], loop: VirtualLoop) -> T:
    """Run a simulation to its end.

    Args:
        work: whose waits are timers only.
        loop: of its own.

    Returns:
        Its result.
    """
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
