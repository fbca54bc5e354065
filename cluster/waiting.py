"""Waiting for an actor with a deadline and an error that says for whom; what an error says first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any


async def answer_within(answer: Awaitable[Any], timeout_s: float, waited_for: str) -> Any:
    """Await an actor's answer.

    Args:
        answer: an object reference, or any awaitable.
        timeout_s: deadline in seconds.
        waited_for: completes "waited N s for ...".

    Returns:
        The answer.

    Raises:
        TimeoutError: past the deadline, naming whom.
    """
    waiting = asyncio.ensure_future(_await(answer))
    try:
        done, _ = await asyncio.wait({waiting}, timeout=timeout_s)
        if not done:
            raise TimeoutError(f"waited {timeout_s:g} s for {waited_for}")
        return waiting.result()
    finally:
        waiting.cancel()


async def _await(answer: Awaitable[Any]) -> Any:
    return await answer


def first_cause(error: BaseException) -> str:
    """What went wrong first, in a line.

    Args:
        error: a group, or a Ray task's error, of which the remote cause is told.

    Returns:
        The cause's type and the first line of its message.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"
