"""How an interrupted command ends: at once and politely, or a little later by force, and with no process left either way.

Owns signals, the clock that starts with them, and the processes of a local cluster. Must not know roles.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import psutil

T = TypeVar("T")

INTERRUPTED_EXIT_CODE = 130
PATIENCE_S = 7.5  # from the signal to the use of force; the rest of the ten seconds promised is for a loaded machine to carry it out
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MARK = "RETHINKER_SESSION"  # in the environment of all processes of a local cluster, by which they are found wherever they were moved to
CONNECTED_DAEMONS = ("raylet", "gcs_server")  # Ray's own shutdown ends these, after the driver has let go of them
REAP_TIMEOUT_S = 1.0  # for killed processes to be gone


@contextmanager
def local_processes() -> Iterator[None]:
    """What is started within, and all that it starts, is gone afterwards, unless the block ends it before.

    Yields:
        Nothing.
    """
    os.environ[MARK] = uuid.uuid4().hex
    try:
        yield
    finally:
        killed = _kill(_marked(os.environ[MARK]))
        del os.environ[MARK]
        psutil.wait_procs(killed, timeout=REAP_TIMEOUT_S)


def end_side_daemons() -> None:
    """End a local cluster's monitors and dashboard, which a run no longer needs.

    Ray's shutdown ends its daemons one after the other and allows each two seconds; of those that are gone already it takes no time.
    """
    if (mark := os.environ.get(MARK)) is not None:
        own = {process.pid for process in psutil.Process().children()}
        _kill(process for process in _marked(mark) if process.pid in own and process.name() not in CONNECTED_DAEMONS)


def _marked(mark: str) -> list[psutil.Process]:
    """Processes with the mark, and their children, of which some have no environment (graders)."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        except psutil.Error:  # gone, or somebody else's
            continue
    return list(found.values())


def _kill(processes: Any) -> list[psutil.Process]:
    killed = []
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
        killed.append(process)
    return killed


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt in the block; after Ctrl-C a clock ends the process when the block takes too long.

    The clock runs in a thread that the signal wakes by itself, so it also helps where the main thread hangs in foreign code. Outside
    of a main thread, where no signal arrives, this does nothing. SIGTERM's sender has a clock of its own.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()
    clock = threading.Thread(target=_watch, args=(reading, over), name="ending", daemon=True)
    clock.start()
    woken_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        with _handlers(dict.fromkeys(SIGNALS, _raise)):
            yield
    finally:
        over.set()
        signal.set_wakeup_fd(woken_before)
        os.write(writing, b"\0")  # so that the thread sees that it is over
        clock.join()
        os.close(writing)
        os.close(reading)


def run(main: Coroutine[Any, Any, T], *, on_sigterm: Callable[[Callable[[], None]], None] | None = None) -> T:
    """asyncio.run, in which the first signal cancels the coroutine and a second Ctrl-C doesn't wait for what it does about that.

    Args:
        main: to run.
        on_sigterm: called in the event loop in place of that, with a function that cancels the coroutine.

    Returns:
        Its result.

    Raises:
        KeyboardInterrupt: when a signal has ended it.
    """
    cancelled = False

    async def cancelled_by_signals() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            task.cancel()

        def interrupt() -> None:
            if cancelled:
                raise KeyboardInterrupt
            cancel()
            loop.call_soon_threadsafe(lambda: None)  # wakes the loop

        def terminate() -> None:
            loop.call_soon_threadsafe(*((cancel,) if on_sigterm is None else (on_sigterm, cancel)))

        if threading.current_thread() is not threading.main_thread():
            return await main
        with _handlers({signal.SIGINT: interrupt, signal.SIGTERM: terminate}):
            return await main

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        if cancelled:
            raise KeyboardInterrupt from None
        raise


def leave(code: int) -> NoReturn:
    """End the process, of which an interrupted command has nothing more to say: taking the engines' modules apart takes seconds.

    Args:
        code: the exit code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_, handle=handle: handle()) for number, handle in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise() -> None:
    raise KeyboardInterrupt


def _watch(reading: int, over: threading.Event) -> None:
    """Wait for Ctrl-C, then for the end of the block; when that doesn't come, make it."""
    while not over.is_set():
        if os.read(reading, 1)[0] == signal.SIGINT and not over.wait(PATIENCE_S):
            os.write(2, f"not ended {PATIENCE_S:g} s after the interruption: ended by force\n".encode())
            if (mark := os.environ.get(MARK)) is not None:
                _kill(_marked(mark))
            os._exit(INTERRUPTED_EXIT_CODE)
