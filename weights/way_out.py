"""A way out of a collective in which somebody is missing: a thread that watches, and aborts the group when there is a reason to.

NCCL has no deadline of its own: a broadcast whose partner has died waits for ever, in a kernel that only aborting the group ends. Sender
and receivers watch each other through the store in which they have met. Must not know what is broadcast.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

POLL_S = 0.2
_ABANDONED = "rethinker/broadcast_abandoned"


class WayOut:
    """Aborts what runs inside of its block when it is abandoned or takes too long; `reason` says so afterwards.

    Args:
        abandoned: whether somebody has given it up; asked every POLL_S from a thread. An error of its own counts as yes, because the
            store that it asks dies with the sender.
        abort: ends the collective from another thread; called at most once.
        timeout_s: for the block.
    """

    def __init__(self, abandoned: Callable[[], bool], abort: Callable[[], None], *, timeout_s: float) -> None:
        self.reason: str | None = None  # why it was aborted
        self._abandoned, self._abort, self._timeout_s = abandoned, abort, timeout_s
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="way out of a broadcast", daemon=True)

    def __enter__(self) -> WayOut:
        self._watching.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._watching.join()

    def _watch(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._over.wait(POLL_S):
            self.reason = self._why(deadline)
            if self.reason is not None:
                self._abort()
                return

    def _why(self, deadline: float) -> str | None:
        if time.monotonic() >= deadline:
            return f"it was not over within {self._timeout_s:g} s"
        try:
            return "its sender gave it up" if self._abandoned() else None
        except Exception as error:  # of whatever store it is
            return f"its sender is gone: {error}"


def abandon_broadcast(group: Any) -> None:
    """Tell all members of a group that nothing more is sent.

    Args:
        group: vLLM's PyNcclCommunicator over a StatelessProcessGroup.
    """
    group.group.store.set(_ABANDONED, b"1")


def broadcast_abandoned(group: Any) -> bool:
    """Whether the sender has said so.

    Args:
        group: as above.

    Returns:
        True when it has.
    """
    return bool(group.group.store.check([_ABANDONED]))
