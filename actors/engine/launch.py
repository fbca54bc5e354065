"""From arguments to a running vLLM, and back to nothing.

Owns what one engine has on the machine - its processes, its sockets, its rendezvous file - and that all of it ends with it.
Must not know requests or weights.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.engine.errors import EngineError
from actors.engine.metrics import ray_stat_loggers
from actors.engine.processes import child_processes, end_processes, vllm_processes_since
from weights.owned_folder import OwnedFolder, remove_abandoned

_CLOSE_TIMEOUT_S = 1.0  # for the engine's processes to end by themselves; they hold nothing that is worth more patience
_ABANDON_TIMEOUT_S = 30  # for a start that took too long to notice that its processes are ended
_FOLDER_PREFIX = "rethinker-engine-"
_SOCKET_PATH_BYTES = 107  # of a Unix socket's address on Linux, without the zero at its end
_SOCKET_NAME_BYTES = 37  # "/" and the UUID that vLLM calls a socket by


@dataclass(slots=True, kw_only=True)
class LaunchedEngine:
    """vLLM with everything that it has on the machine."""

    vllm: Any  # AsyncLLM; None once it is closed
    processes: list[psutil.Process]
    folder: OwnedFolder

    async def close(self) -> None:
        """End the engine, its processes and its files; safe to call twice."""
        engine, self.vllm = self.vllm, None
        if engine is not None:
            if engine.output_handler is not None and engine.get_num_unfinished_requests() == 0:
                engine.output_handler.cancel()  # it would log the end of its processes as an error
            await asyncio.to_thread(engine.shutdown, _CLOSE_TIMEOUT_S)
            del engine
            gc.collect()  # vLLM's engine sits in reference cycles and complains when it is collected at the interpreter's exit
        await asyncio.to_thread(end_processes, self.processes, grace_s=_CLOSE_TIMEOUT_S)
        self.folder.close()


async def launch(arguments: dict[str, Any], *, name: str, reports: bool, timeout_s: float) -> LaunchedEngine:
    """Start vLLM; its environment has to be set (see settings.set_environment).

    Args:
        arguments: of vLLM's AsyncEngineArgs.
        name: stands in errors.
        reports: give vLLM's own metrics to Ray.
        timeout_s: for the start, seconds.

    Returns:
        The engine, ready.

    Raises:
        EngineError: when it fails or takes longer; then nothing of it is left.
    """
    folder = OwnedFolder(_folder_root(), _FOLDER_PREFIX)
    before = child_processes()
    built: list[Any] = []
    try:
        with _temporary_files_in(folder.path):
            starting = asyncio.ensure_future(asyncio.to_thread(_build, arguments, built, reports))
            done, _ = await asyncio.wait({starting}, timeout=timeout_s)
            processes = vllm_processes_since(before)
            if not done:
                await _abandon_start(starting, built, before)
                raise EngineError(f"{name} did not start within {timeout_s:.0f} s")
        failure = starting.exception()
        if failure is not None:
            await asyncio.to_thread(end_processes, processes, grace_s=0.0)
            raise EngineError(f"{name} did not start: {failure}") from failure
    except EngineError:
        folder.close()
        raise
    return LaunchedEngine(vllm=built.pop(), processes=processes, folder=folder)


def remove_abandoned_folders() -> None:
    """Remove the files of engines on this machine whose process was killed."""
    remove_abandoned(_folder_root(), _FOLDER_PREFIX)


def _folder_root() -> Path:
    """The system's temporary folder, unless its path is too long to have a Unix socket below a folder of ours."""
    root = Path(tempfile.gettempdir())
    longest = len(os.fsencode(root)) + len(f"/{_FOLDER_PREFIX}12345678") + _SOCKET_NAME_BYTES
    return root if longest <= _SOCKET_PATH_BYTES else Path("/tmp")


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Have vLLM put its sockets and its rendezvous file there while it starts: it makes them by the dozen and removes none."""
    os.environ["VLLM_RPC_BASE_PATH"] = str(folder)
    variable, python = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = python
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable


def _build(arguments: dict[str, Any], built: list[Any], reports: bool) -> None:
    """Start vLLM, which takes 10 to 30 s, and put the engine into the list: a future's result would outlive close."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    loggers = ray_stat_loggers() if reports else None
    built.append(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=loggers))


async def _abandon_start(starting: asyncio.Future[None], built: list[Any], before: set[psutil.Process]) -> None:
    """End vLLM's processes, also those that it only now starts, until its start has returned with an error."""
    for _ in range(_ABANDON_TIMEOUT_S):
        await asyncio.to_thread(end_processes, vllm_processes_since(before), grace_s=0.0)
        done, _ = await asyncio.wait({starting}, timeout=1.0)
        if done:
            break
    if starting.done() and starting.exception() is None:
        await asyncio.to_thread(built.pop().shutdown, _CLOSE_TIMEOUT_S)
