"""How many restarts are too many. Values only, no Ray.

Owns the count within a window and which death is told when it is used up. Must not know how a role is restarted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class RestartBudgetExceeded(RuntimeError):
    """Roles of one kind die faster than they may be replaced; the message begins with the first cause of the window."""


class RestartBudget:
    """At most N restarts within a window of seconds, for each kind of role by itself.

    A kind whose restarts lie further apart never runs out: what is bounded is a fault that comes back, not the age of a run.

    Args:
        max_restarts: N; 0: nothing is ever restarted.
        window_s: seconds.
        clock: seconds that only grow.
    """

    def __init__(self, *, max_restarts: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._clock = clock
        self._spent: dict[str, deque[tuple[float, str]]] = {}

    def spend(self, kind: str, cause: str) -> None:
        """Account for one restart.

        Args:
            kind: of role.
            cause: why the role has to be restarted, in a sentence.

        Raises:
            RestartBudgetExceeded: when the kind was restarted max_restarts times within the window already.
        """
        now = self._clock()
        spent = self._spent.setdefault(kind, deque())
        while spent and spent[0][0] <= now - self._window_s:
            spent.popleft()
        if len(spent) >= self._max_restarts:
            first = spent[0][1] if spent else cause
            latest = f"; the latest: {cause}" if cause != first else ""
            raise RestartBudgetExceeded(
                f"{first} (the first of {len(spent) + 1} {kind} failures within {self._window_s:g} s, and supervision.max_restarts ="
                f" {self._max_restarts}{latest})"
            )
        spent.append((now, cause))

    def left(self, kind: str) -> int:
        """Restarts that a kind may still have now.

        Args:
            kind: of role.

        Returns:
            At least 0.
        """
        now = self._clock()
        recent = sum(when > now - self._window_s for when, _ in self._spent.get(kind, ()))
        return max(0, self._max_restarts - recent)
