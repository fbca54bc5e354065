"""How far production may run ahead of consumption. Pure counting, no Ray."""

from __future__ import annotations

import asyncio


class Admission:
    """Paces prompts so that no group is older than max_staleness versions when a step consumes it.

    A prompt is admitted only while accepted + running < (max_staleness + version + 1) * prompts_per_step, where both counts
    run from the start of the run (AReaL, arXiv 2505.24298, section 5.1). The prompt ledger numbers the admitted prompts by turns without a
    gap, so a prompt that is admitted at version v has a turn below (k + v + 1) P; step s consumes the turns [s P, (s + 1) P) at version s,
    hence s <= v + k. A visit that is issued again keeps its turn and gets a later version. docs/staleness.md has the derivation.
    With max_staleness 0 a step's prompts are admitted only once the version they are for is in service: the synchronous mode.

    Args:
        prompts_per_step: P, groups that a step consumes.
        max_staleness: k >= 0 in versions.
        num_steps: of the run; nothing is admitted that no step would take.
        version: the policy version in service.
        accepted: groups that replay has accepted since the start of the run.
    """

    def __init__(self, *, prompts_per_step: int, max_staleness: int, num_steps: int, version: int = 0, accepted: int = 0) -> None:
        self._prompts_per_step = prompts_per_step
        self._max_staleness = max_staleness
        self._num_steps = num_steps
        self._version = version
        self._accepted = accepted
        self._running = 0
        self._changed = asyncio.Event()

    @property
    def capacity(self) -> int:
        """Prompts that may start now."""
        steps_ahead = min(self._max_staleness + self._version + 1, self._num_steps)
        return steps_ahead * self._prompts_per_step - self._accepted - self._running

    @property
    def running(self) -> int:
        """Prompts admitted and not yet finished."""
        return self._running

    async def admit(self, at_most: int) -> int:
        """Wait until at least one prompt may start, and count it as running.

        Unblocked by a new version in service or by a prompt that turned out bad. It waits without a deadline of its own:
        the consumer, which makes versions, has one on every call.

        Args:
            at_most: prompts wanted.

        Returns:
            Prompts admitted, from 1 to at_most.
        """
        while self.capacity <= 0:
            self._changed.clear()
            await self._changed.wait()
        admitted = min(at_most, self.capacity)
        self._running += admitted
        return admitted

    def finish(self, *, accepted: int, dropped: int) -> None:
        """Count running prompts as over.

        Args:
            accepted: groups that are in replay.
            dropped: prompts without a group; their place is free for others.
        """
        self._running -= accepted + dropped
        self._accepted += accepted
        self._changed.set()

    def publish(self, version: int) -> None:
        """Open the next version's share.

        Args:
            version: now in service in the rollout actors.

        Raises:
            ValueError: when the version goes backwards.
        """
        if version < self._version:
            raise ValueError(f"policy version went backwards: {version} after {self._version}")
        self._version = version
        self._changed.set()
