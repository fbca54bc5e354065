"""What to do when the disk has no room: wait, say so, and try again. Must not know what is written."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RETRY_S = 1.0


async def when_there_is_room(attempt: Callable[[], Awaitable[T]], timeout_s: float, what: str) -> T:
    """Do something that writes to a disk, again and again while the disk is full.

    Args:
        attempt: changes nothing when it raises OSError.
        timeout_s: how long the disk may stay full.
        what: waits, for the log.

    Returns:
        What it returns.

    Raises:
        OSError: when the disk is still full past the deadline, or for any other reason.
    """
    deadline: float | None = None
    while True:
        try:
            return await attempt()
        except OSError as error:
            now = time.monotonic()
            if error.errno not in NO_ROOM or (deadline is not None and now > deadline):
                raise
            if deadline is None:
                deadline = now + timeout_s
                logger.warning("the disk is full: %s wait until there is room, at most %g s: %s", what, timeout_s, error)
        await asyncio.sleep(RETRY_S)
