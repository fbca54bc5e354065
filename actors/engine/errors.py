"""How an engine's failures are told, and how its answers are waited for.

Owns the errors of the rollout engine. Must not know Ray; vLLM's own errors are recognised here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class EngineError(RuntimeError):
    """The engine cannot serve: it died, did not answer in time, or its weights are not whole."""


class PromptRefusedError(ValueError):
    """A request that the engine would answer wrongly or not at all; other requests are not affected."""


async def answer_by(deadline: float, awaitable: Awaitable[T], *, name: str, what: str) -> T:
    """Wait for a call into the engine, but not for ever.

    Args:
        deadline: on the event loop's clock.
        awaitable: the call.
        name: of the engine.
        what: the call in words, after "did not".

    Returns:
        The call's result.

    Raises:
        EngineError: when the engine died or the deadline passed; the call's own errors pass through.
    """
    try:
        async with asyncio.timeout_at(deadline):
            with engine_deaths(name):
                return await awaitable
    except TimeoutError as error:
        raise EngineError(f"{name} did not {what} in time") from error


@contextmanager
def engine_deaths(name: str) -> Iterator[None]:
    """Turn vLLM's error for a dead engine into ours.

    Args:
        name: of the engine.

    Raises:
        EngineError: instead of vLLM's EngineDeadError.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineError(f"{name} died; its own log has the cause") from error


@contextmanager
def refusals(name: str, request: str) -> Iterator[None]:
    """Turn vLLM's errors about one request into ours.

    Args:
        name: of the engine.
        request: what was asked, for the message.

    Raises:
        PromptRefusedError: for a request that vLLM finds invalid.
        EngineError: for any other failure of the request, or a dead engine.
    """
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineGenerateError

    try:
        with engine_deaths(name):
            yield
    except (VLLMClientError, ValueError) as error:
        raise PromptRefusedError(f"{name} refuses {request}: {error}") from error
    except EngineGenerateError as error:
        if isinstance(error.__cause__, ValueError):
            raise PromptRefusedError(f"{name} refuses {request}: {error.__cause__}") from error
        raise EngineError(f"{name} failed in {request}: {error.__cause__!r}") from error
