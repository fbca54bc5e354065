"""Several requests into vLLM's engine in one of its steps, in a given order.

Owns the order in which an engine meets requests. Must not know Ray, prompts or what the answers are for.

What an engine computes for a request depends, in the last bits, on which others it computes with it: kernels add up in another order for
another batch. vLLM has kernels that don't, for some GPUs only. Its scheduler is a function of what it is given and when: with requests
that come together into an idle engine without a cache, and no other one until they are answered, the batches are the same each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from actors.engine.errors import refusals


async def admit(engine: Any, requests: Sequence[tuple[dict[str, Any], Any, str] | Exception], *, name: str) -> list[Any]:
    """Hand requests to a paused engine, one after the other.

    Args:
        engine: vLLM's AsyncLLM, paused: it queues what comes.
        requests: vLLM's prompt, its sampling parameters and an id each; or why one was refused before.
        name: of the engine, for errors.

    Returns:
        For each the queue that its output will come from, or the PromptRefusedError.

    Raises:
        EngineError: when the engine died.
    """
    queues: list[Any] = []
    for request in requests:
        if isinstance(request, Exception):
            queues.append(request)
            continue
        prompt, params, request_id = request
        try:
            with refusals(name, f"request {request_id}"):
                queues.append(await engine.add_request(request_id, prompt, params))
        except ValueError as refusal:
            queues.append(refusal)
        except BaseException:
            await asyncio.gather(*(_abort(engine, queue) for queue in queues), return_exceptions=True)
            raise
    return queues


async def final_output(engine: Any, queue: Any) -> Any:
    """Wait for a request's last output; a caller that is cancelled takes the request with it.

    Args:
        engine: that was given the request.
        queue: of admit.

    Returns:
        vLLM's RequestOutput.
    """
    try:
        while True:
            output = queue.get_nowait() or await queue.get()
            if output.finished:
                return output
    except asyncio.CancelledError:
        await _abort(engine, queue)
        raise


async def _abort(engine: Any, queue: Any) -> None:
    if not isinstance(queue, BaseException):
        await engine.abort(queue.request_id, internal=True)
