"""New weights into a running vLLM engine: verify, pause, load, shake hands, resume, and what happens when a step fails.

Owns which policy version an engine serves and whether its weights are whole. Must not know Ray or how weights travel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from actors.engine.errors import EngineError, answer_by
from weights.manifest import WeightUpdateError
from weights.staging import StagedUpdate

logger = logging.getLogger(__name__)

_ABORT_TIMEOUT_S = 30.0  # to close an update that broke off


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReceipt:
    """The engine's end of a sync: what it says that it holds, and what that took."""

    version: int
    checksum: str | None  # of the whole model, as its processes have computed it; None: weights that came by broadcast
    verify_s: float  # reading what had not been read ahead, which the engine's process does instead of generating
    paused_s: float  # without a token: from the first byte verified to the resumption
    load_s: float  # of it, vLLM's loading, from opening the model to the workers' checksum


class WeightUpdater:
    """Takes updates for one engine, one at a time.

    Two ways lead through the same steps: apply, when the whole update is here already and one call into the engine takes most of them,
    and begin / receive / finish, when a trainer broadcasts (NCCL) and drives the steps itself.

    Args:
        engine: vLLM's AsyncLLM.
        name: of the engine, for errors.
    """

    def __init__(self, engine: Any, name: str) -> None:
        self._engine = engine
        self._name = name
        self._lock = asyncio.Lock()
        self._deadline = 0.0  # of the update that a trainer drives, on the event loop's clock
        self._watchdog: asyncio.TimerHandle | None = None
        self.version = 0  # of the weights in service
        self.mixed: str | None = None  # why nothing may be sampled until the next whole update
        self.broken: str | None = None  # why the engine cannot be used any more

    async def stamp(self, version: int, timeout_s: float) -> None:
        """Declare which version the loaded weights are.

        Args:
            version: the policy version.
            timeout_s: for vLLM's answer.

        Raises:
            EngineError: when it does not answer.
        """
        await self._step("set its version", self._engine.update_weight_version(str(version)), _now() + timeout_s)
        self.version = version

    @asynccontextmanager
    async def held(self, timeout_s: float, *, forget: bool) -> AsyncIterator[None]:
        """Keep the engine from stepping while requests are handed to it.

        Args:
            timeout_s: to pause, and to resume.
            forget: also drop what is cached of former requests.

        Raises:
            EngineError: when it did not pause or resume.
        """
        async with self._lock:
            await self._step("pause", _pause(self._engine, clear_cache=forget), _now() + timeout_s)
            try:
                yield
            finally:
                await self._step("resume", self._engine.resume_generation(), _now() + timeout_s)

    async def expect(self, paths: Sequence[str], version: int, timeout_s: float) -> None:
        """Let the engine's processes read a version while it is being written; what they read is still verified by apply.

        Args:
            paths: of the files on this node, as apply will get them.
            version: that they are about to be.
            timeout_s: for the engine's answer, and for the writer.

        Raises:
            WeightUpdateError: when the files are not there.
            EngineError: the engine died or did not answer in time.
        """
        call = self._engine.collective_rpc("expect_weights", args=(list(paths), version, timeout_s))
        await self._step("read the weights ahead", call, _now() + timeout_s)

    async def apply(self, update: StagedUpdate, timeout_s: float) -> UpdateReceipt:
        """Verify a staged update, load it, and have the engine say what it holds.

        Args:
            update: staged on this node.
            timeout_s: for all steps together.

        Returns:
            What the engine holds now.

        Raises:
            WeightUpdateError: it was refused; the old weights are in service unless `mixed` is set.
            EngineError: the engine died or a step was not over in time.
        """
        deadline = _now() + timeout_s
        async with self._lock:
            # Shielded: a caller that is cancelled in mid-update must not leave the engine paused and open.
            return await asyncio.shield(asyncio.ensure_future(self._apply(update, deadline)))

    async def _apply(self, update: StagedUpdate, deadline: float) -> UpdateReceipt:
        paths, manifest = list(update.paths), update.manifest.to_dict()
        begin = _now()
        await self._step("verify the weights", self._engine.collective_rpc("verify_weights", args=(paths, manifest)), deadline)
        verified = _now()
        await self._step("pause", _pause(self._engine, clear_cache=True), deadline)
        paused = _now()
        try:
            call = self._engine.collective_rpc("apply_weights", args=(paths, manifest))
            answers = await self._step("load the weights", call, deadline)
            loaded = _now()
            await self._step("stamp the weights", self._engine.update_weight_version(str(update.manifest.version)), deadline)
        except WeightUpdateError as error:
            await self._recover(error)
        self._must_agree(answers, update.manifest.checksum)
        await self._resume(update.manifest.version, deadline)
        return UpdateReceipt(
            version=self.version,
            checksum=update.manifest.checksum,
            verify_s=verified - begin,
            paused_s=_now() - begin,
            load_s=loaded - paused,
        )

    async def connect(self, init_info: dict[str, Any], timeout_s: float) -> None:
        """Meet the trainer's end of a broadcast.

        Args:
            init_info: of vLLM's trainer engine.
            timeout_s: for the meeting.

        Raises:
            EngineError: when the ends did not meet.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._step("take the deadline", self._engine.collective_rpc("limit_broadcasts", args=(timeout_s,)), _now() + timeout_s)
        request = WeightTransferInitRequest(init_info=init_info)
        await self._step("meet the trainer", self._engine.init_weight_transfer_engine(request), _now() + timeout_s)

    async def begin(self, timeout_s: float) -> None:
        """First step of an update that a trainer drives.

        Args:
            timeout_s: for the whole update; when finish has not come by then the engine is declared broken.

        Raises:
            EngineError: when it did not pause.
        """
        async with asyncio.timeout(timeout_s):
            await self._lock.acquire()
        self._deadline = _now() + timeout_s
        try:
            await self._open(self._deadline)
        except BaseException:
            self._lock.release()
            raise
        self._watchdog = asyncio.get_running_loop().call_later(timeout_s, self._give_up, timeout_s)

    async def receive(self, update_info: dict[str, Any]) -> None:
        """Second step of an update that a trainer drives: take part in its broadcast.

        Args:
            update_info: of vLLM's trainer engine.

        Raises:
            WeightUpdateError: when loading failed.
            EngineError: when the engine died or the time is over.
        """
        try:
            await self._load(update_info, self._deadline)
        except BaseException:
            self._release()
            raise

    async def finish(self, version: int, checksum: str) -> None:
        """Last step of an update that a trainer drives.

        Args:
            version: of the weights that were received.
            checksum: of the whole model, which every worker must answer.

        Raises:
            WeightUpdateError: when a worker answers another one; the engine stays paused.
            EngineError: when the engine died or the time is over.
        """
        try:
            await self._close(version, self._deadline, expected=checksum)
        finally:
            self._release()

    async def abandon(self, reason: str) -> None:
        """Close an update that its trainer has given up; none may be under way, and then nothing happens.

        Args:
            reason: for whoever wants to sample before the next whole update.
        """
        if self._watchdog is None:
            return
        try:
            await self._recover(WeightUpdateError(reason))
        except WeightUpdateError as error:
            logger.warning("%s", error)
        finally:
            self._release()

    async def _open(self, deadline: float) -> None:
        """Pause, keep the running requests, forget KV and image embeddings of the old weights, open the model for loading."""
        await self._step("pause", _pause(self._engine, clear_cache=True), deadline)
        try:
            await self._step("start the update", self._engine.start_weight_update(), deadline)
        except WeightUpdateError as error:
            await self._recover(error)

    async def _load(self, update_info: dict[str, Any], deadline: float) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        try:
            await self._step("load the weights", self._engine.update_weights(WeightTransferUpdateRequest(update_info)), deadline)
        except WeightUpdateError as error:
            await self._recover(error)

    async def _close(self, version: int, deadline: float, *, expected: str) -> None:
        """Close the model, shake hands, resume."""
        try:
            await self._step("finish the update", self._engine.finish_weight_update(weight_version=str(version)), deadline)
        except WeightUpdateError as error:
            await self._recover(error)
        try:
            answers = await self._step("say what it has loaded", self._engine.collective_rpc("weights_checksum"), deadline)
        except WeightUpdateError as error:
            answers = [str(error)]
        self._must_agree(answers, expected)
        await self._resume(version, deadline)

    async def _resume(self, version: int, deadline: float) -> None:
        """Sample again, from weights that are whole."""
        self.version = version
        self.mixed = None
        await self._step("resume", self._engine.resume_generation(), deadline)

    def _must_agree(self, answers: Sequence[str | None], expected: str) -> None:
        """Shake hands with every worker. Raises WeightUpdateError, and leaves the engine paused, when one holds anything else."""
        if set(answers) != {expected}:
            told = ", ".join(sorted({str(answer) for answer in answers}))
            self.mixed = (
                f"{self._name} answers {told} for the checksum of its weights, {expected} was sent; it samples again after a whole update"
            )
            raise WeightUpdateError(self.mixed)

    async def _recover(self, error: WeightUpdateError) -> NoReturn:
        """Close an update that broke off. Always raises; resumes when the old weights are still whole."""
        deadline = _now() + _ABORT_TIMEOUT_S
        intact = all(await self._step("abandon the update", self._engine.collective_rpc("abort_weight_update"), deadline))
        if intact and self.mixed is None:
            await self._step("resume", self._engine.resume_generation(), deadline)
            raise error
        self.mixed = f"{self._name} holds layers of two versions after a failed update; it samples again after a whole one"
        raise WeightUpdateError(f"{error}; {self.mixed}") from error

    async def _step(self, what: str, call: Any, deadline: float) -> Any:
        """One call into the engine. A missed deadline breaks it for good: nobody knows what its process is doing."""
        if self.broken is not None:
            call.close()
            raise EngineError(self.broken)
        try:
            return await answer_by(deadline, call, name=self._name, what=what)
        except EngineError as error:
            self.broken = str(error)
            raise
        except Exception as error:  # vLLM hands failures in its processes over as plain Exceptions with their text
            raise WeightUpdateError(f"{self._name} could not {what}: {error}") from error

    def _give_up(self, timeout_s: float) -> None:
        self.broken = f"{self._name}: the trainer did not finish its weight update within {timeout_s:.0f} s"
        self._release()

    def _release(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._lock.locked():
            self._lock.release()


async def _pause(engine: Any, *, clear_cache: bool) -> None:
    """AsyncLLM.pause_generation(mode="keep") without its sleep of 20 ms.

    The two calls are all that it does besides. vLLM says of the sleep that it is not needed for correctness: it only orders what
    callers see of outputs that are on their way, and ours look at no output before its request has ended.
    """
    if clear_cache:
        await engine.renderer.clear_mm_cache_async()
    await engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)


def _now() -> float:
    return asyncio.get_running_loop().time()
