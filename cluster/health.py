"""Named states of the roles, and what is told when one dies. Values only, no Ray.

Owns which state may follow which and who hears of a change. Must not know how a state is found out (cluster.supervision, cluster.deaths).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

logger = logging.getLogger(__name__)


class RoleState(str, Enum):
    """What a role is able to do."""

    starting = "starting"  # placed or waiting for a place; it has not answered yet
    healthy = "healthy"  # it answers and holds the version in service
    suspect = "suspect"  # it missed heartbeats and may come back; it gets no new work
    stale = "stale"  # it answers and holds other weights than the version in service: joining, or about to leave
    dead = "dead"  # its processes are gone or were ended
    restarting = "restarting"  # dead, and a successor is on its way


_ALLOWED: Mapping[RoleState, frozenset[RoleState]] = {
    RoleState.starting: frozenset({RoleState.healthy, RoleState.stale, RoleState.dead}),
    RoleState.healthy: frozenset({RoleState.suspect, RoleState.stale, RoleState.dead}),
    RoleState.suspect: frozenset({RoleState.healthy, RoleState.stale, RoleState.dead}),
    RoleState.stale: frozenset({RoleState.healthy, RoleState.suspect, RoleState.dead}),
    RoleState.dead: frozenset({RoleState.restarting}),
    RoleState.restarting: frozenset({RoleState.starting, RoleState.healthy, RoleState.stale, RoleState.dead}),
}
"""A dead role comes back through restarting only; a rollout actor becomes healthy through a completed weight sync only."""


class IllegalTransition(RuntimeError):
    """A role was said to be in a state that cannot follow the one it was in."""


def may_follow(before: RoleState, after: RoleState) -> bool:
    """Whether a role can go from one state to another.

    Args:
        before: where it is.
        after: where it would be.

    Returns:
        True also when both are the same.
    """
    return before is after or after in _ALLOWED[before]


@dataclass(frozen=True, kw_only=True)
class DeathReport:
    """Who died, where, of what, and what it said last.

    Example: ``DeathReport(role="rollout actor 1", cause="worker exit SYSTEM_ERROR: ... SIGKILL", node="10.0.0.7", pid=4211,
    last_log_lines=("INFO ...",), time=1764148000.0)``.
    """

    role: str
    cause: str  # one line
    node: str = ""  # address; empty: not known
    pid: int | None = None  # None: it never said
    last_log_lines: tuple[str, ...] = ()  # oldest first; empty: there are none, or its node is gone
    time: float = field(default_factory=time.time)  # seconds since the epoch, when it was noticed

    def headline(self) -> str:
        """One line for logs and tables.

        Returns:
            Such as "rollout actor 1 (pid 4211 on 10.0.0.7) died: killed by SIGKILL".
        """
        place = " on ".join(filter(None, [f"pid {self.pid}" if self.pid is not None else "", self.node]))
        return f"{self.role}{f' ({place})' if place else ''} died: {self.cause}"

    def text(self) -> str:
        """The headline and the last log lines, indented.

        Returns:
            Several lines.
        """
        return "\n".join([self.headline(), *(f"    {line}" for line in self.last_log_lines)])

    def as_dict(self) -> dict[str, Any]:
        """For status and files.

        Returns:
            JSON-able.
        """
        return asdict(self) | {"last_log_lines": list(self.last_log_lines)}


@dataclass
class RoleHealth:
    """Where one member of a role is."""

    kind: str  # "rollout", "learner", "replay", ...
    rank: int  # among its kind
    state: RoleState = RoleState.starting
    reason: str = ""  # of the last change
    since: float = field(default_factory=time.time)
    restarts: int = 0
    version: int | None = None  # of the weights it says it holds; None: it has not said, or has none

    @property
    def name(self) -> str:
        """Such as "rollout 3"."""
        return f"{self.kind} {self.rank}"


Observer = Callable[[RoleHealth, RoleState | None, RoleState | None], None]
"""Told of each change: the role, its state before (None: it is new) and after (None: it has left)."""


class HealthBoard:
    """The states of all roles of a run, in one place for metrics, log and status.

    Args:
        observers: told of each change, after the log.
    """

    def __init__(self, *observers: Observer) -> None:
        self._roles: dict[tuple[str, int], RoleHealth] = {}
        self._observers = observers
        self.deaths: list[DeathReport] = []  # oldest first

    def enter(self, kind: str, rank: int, state: RoleState, reason: str = "") -> RoleHealth:
        """Say in which state a role is; a new one is entered.

        Args:
            kind: of the role.
            rank: among its kind.
            state: that it is in now.
            reason: why, in a few words.

        Returns:
            The role.

        Raises:
            IllegalTransition: when the state cannot follow the one before.
        """
        role = self._roles.get((kind, rank))
        if role is None:
            role = self._roles[kind, rank] = RoleHealth(kind=kind, rank=rank, state=state, reason=reason)
            before = None
        else:
            if role.state is state:
                return role
            if not may_follow(role.state, state):
                raise IllegalTransition(f"{role.name} is {role.state.value} and cannot become {state.value} ({reason})")
            before, role.state, role.reason, role.since = role.state, state, reason, time.time()
            role.restarts += state is RoleState.restarting
            if state in (RoleState.dead, RoleState.restarting, RoleState.starting):
                role.version = None
        level = logging.WARNING if state in (RoleState.suspect, RoleState.dead) else logging.INFO
        logger.log(level, "%s is %s%s", role.name, state.value, f": {reason}" if reason else "")
        for observer in self._observers:
            observer(role, before, state)
        return role

    def holds(self, kind: str, rank: int, version: int | None) -> None:
        """Note which weights a role says it holds; observers hear of it as of a change from its state to the same.

        Args:
            kind: of the role.
            rank: among its kind; one that was never entered, or has left, is passed over.
            version: policy version; None: it has none yet.
        """
        role = self._roles.get((kind, rank))
        if role is None or role.version == version:
            return
        role.version = version
        for observer in self._observers:
            observer(role, role.state, role.state)

    def forget(self, kind: str, rank: int) -> None:
        """Drop a role that left and will not come back.

        Args:
            kind: of the role.
            rank: among its kind.
        """
        role = self._roles.pop((kind, rank), None)
        if role is not None:
            logger.info("%s has left", role.name)
            for observer in self._observers:
                observer(role, role.state, None)

    def report(self, death: DeathReport) -> None:
        """Keep and log a death.

        Args:
            death: as far as it is known.
        """
        self.deaths.append(death)
        logger.error("%s", death.text())

    def of(self, kind: str) -> list[RoleHealth]:
        """All members of a kind.

        Args:
            kind: of role.

        Returns:
            By rank.
        """
        return [role for (its_kind, _), role in sorted(self._roles.items()) if its_kind == kind]

    def state_of(self, kind: str, rank: int) -> RoleState | None:
        """Where one role is.

        Args:
            kind: of the role.
            rank: among its kind.

        Returns:
            None: it was never entered, or has left.
        """
        role = self._roles.get((kind, rank))
        return None if role is None else role.state

    def as_list(self) -> list[dict[str, Any]]:
        """For status.

        Returns:
            JSON-able, by kind and rank.
        """
        return [asdict(role) | {"state": role.state.value} for _, role in sorted(self._roles.items())]
