"""Waiting for an actor with a deadline and an error that says for whom."""

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
