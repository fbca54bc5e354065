"""A rollout actor's end of a sync: a shipment becomes files that the engine can read, and the engine says what it has made of them.

Owns the actor's own copy of the weights, which it has only when it can't read the learner's. Must not know the learner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from actors.engine import RolloutEngine
from weights.manifest import BaseMismatchError, EarlyPart, SenderLostError, Shipment, WeightUpdateError
from weights.staging import StagedUpdate, StagingArea, shared_memory_root

if TYPE_CHECKING:
    from weights.mirror import WeightMirror


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightReceipt:
    """A replica's end of a sync."""

    version: int  # in service
    checksum: str | None  # of the whole model, as the engine's processes have computed it
    stage_s: float  # fetching and applying the parts, while the engine generates
    verify_s: float  # reading every byte in the engine's processes
    paused_s: float  # without a token, verifying included


class WeightIntake:
    """Takes shipments for one engine, one at a time.

    Args:
        engine: that they are for.
        timeout_s: for one shipment.
        name: of the replica, for errors.
    """

    def __init__(self, engine: RolloutEngine, *, timeout_s: float, name: str) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._name = name
        self._lock = asyncio.Lock()
        self._area: StagingArea | None = None
        self._mirror: WeightMirror | None = None

    async def expect(self, paths: tuple[str, ...], version: int) -> None:
        """Have the engine read files of this node while they are being written; the version comes by take all the same.

        Args:
            paths: the learner's, as the version before had them.
            version: that they are about to be.

        Raises:
            WeightUpdateError: when the engine can't read them.
            EngineError: when the engine died or did not answer in time.
        """
        await self._engine.expect_weights(paths, version, timeout_s=self._timeout_s)

    async def take_early(self, early: EarlyPart) -> None:
        """Bring one bucket of the copy to a version that is still being published; the version comes by take all the same.

        Args:
            early: the bucket; several may be on their way at once.

        Raises:
            SenderLostError: when it is gone before it arrived.
            BaseMismatchError: when it refers to other weights than those here; nothing has happened.
            WeightUpdateError: when it is not what it says.
            EngineError: when the engine died or did not answer in time.
        """
        (payload,) = await self._arrived([early.payload], early.version)
        async with self._lock:
            if self._mirror is None:
                raise BaseMismatchError(f"update to version {early.version}: {self._name} has no copy that changes could be made in")
            if not self._mirror.taken(early):
                await self._engine.expect_weights(self._mirror.paths, early.version, timeout_s=self._timeout_s)
            await asyncio.to_thread(self._mirror.take_early, early, payload)

    async def take(self, shipment: Shipment) -> WeightReceipt:
        """Stage a published version whole, then have the engine verify and load it.

        Args:
            shipment: files of this node, or parts.

        Returns:
            What the engine answers that it holds.

        Raises:
            SenderLostError: when the parts are gone before they arrived; nothing has happened.
            BaseMismatchError: when the parts are changes to other weights than those here; nothing has happened.
            WeightUpdateError: when what arrived is not the manifest's; the old weights stay in service.
            EngineError: when the engine died or did not answer in time.
        """
        async with self._lock:
            begin = time.monotonic()
            if shipment.paths is not None:
                staged = StagedUpdate(paths=shipment.paths, manifest=shipment.manifest)
            else:
                staged = await self._stage(shipment)
            staged_s = time.monotonic() - begin
            try:
                receipt = await self._engine.update_weights(staged, shipment.manifest.version, timeout_s=self._timeout_s)
            except WeightUpdateError:
                if self._mirror is not None:
                    self._mirror.forget()
                raise
        return WeightReceipt(
            version=receipt.version,
            checksum=receipt.checksum,
            stage_s=staged_s,
            verify_s=receipt.verify_s,
            paused_s=receipt.paused_s,
        )

    def close(self) -> None:
        """Remove the copy; safe to call twice."""
        if self._area is not None:
            self._area.close()

    async def _stage(self, shipment: Shipment) -> StagedUpdate:
        """Fetch the parts that have not come early, and bring the copy to their version."""
        taken = self._mirror.taken(shipment) if self._mirror is not None else frozenset()
        wanted = [None if index in taken else payload for index, payload in enumerate(shipment.payloads)]
        payloads = await self._arrived(wanted, shipment.manifest.version)
        if self._area is None or self._mirror is None:
            from weights.mirror import WeightMirror  # imports torch, which the controller, who knows receipts, has no use for

            self._area = StagingArea(str(shared_memory_root(shipment.manifest.nbytes)))
            self._mirror = WeightMirror(self._area)
        if self._mirror.paths and not taken:  # else it is reading already
            await self._engine.expect_weights(self._mirror.paths, shipment.manifest.version, timeout_s=self._timeout_s)
        return await asyncio.to_thread(self._mirror.take, shipment, payloads)

    async def _arrived(self, payloads: Sequence[Any], version: int) -> list[Any]:
        """What the references refer to; None stays None."""
        try:
            fetched = iter(await asyncio.wait_for(asyncio.gather(*(p for p in payloads if p is not None)), self._timeout_s))
        except (ray.exceptions.RayError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SenderLostError(f"version {version} did not reach {self._name}: {reason}") from error
        return [None if payload is None else next(fetched) for payload in payloads]
