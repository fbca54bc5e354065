"""When a run that scales itself wants one rollout actor more or one less. Values only, no Ray.

Owns the rule. Must not know how replicas are started or let go (cluster.supervision).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

STARVED = 0.2  # share of a step spent waiting for groups, above which one more replica is wanted
SLACK = 0.9  # a replica leaves only where the others would be busy for less than this share


def wanted(*, serving: int, low: int, high: int, waited: Sequence[float], busy: Sequence[float]) -> int:
    """The number of replicas that the last steps speak for.

    One at a time: what one more or one less does shows only afterwards. A run that waits for groups is starved: it gets one more.
    A run that never waits, and whose n replicas are under way for so little of the time that n - 1 could do their work with a tenth to
    spare, produces more than it may use (admission holds it back): it lets one go.

    Args:
        serving: n, replicas in service.
        low: never fewer.
        high: never more.
        waited: of each step, the share of its time that it waited for groups.
        busy: of each step, the share of its time in which at least one rollout call was under way.

    Returns:
        From low to high.

    Example: ``wanted(serving=2, low=1, high=4, waited=[0.5, 0.4, 0.6], busy=[1.0, 1.0, 1.0])`` is 3.
    """
    if statistics.median(waited) > STARVED:
        return max(low, min(high, serving + 1))
    if serving > 1 and statistics.median(waited) < STARVED / 4 and statistics.median(busy) * serving < SLACK * (serving - 1):
        return max(low, min(high, serving - 1))
    return max(low, min(high, serving))


class ScalingPolicy:
    """Looks at a window of steps, and begins a new one whenever the number of replicas has changed.

    Args:
        low: rollout.min_actors.
        high: rollout.max_actors.
        window_steps: steps that are looked at together.
    """

    def __init__(self, *, low: int, high: int, window_steps: int) -> None:
        self._low, self._high = low, high
        self._waited: deque[float] = deque(maxlen=window_steps)
        self._busy: deque[float] = deque(maxlen=window_steps)
        self._serving: int | None = None

    def observe(self, metrics: Mapping[str, float], *, serving: int, settled: bool) -> int | None:
        """Take in a step.

        Args:
            metrics: of the step.
            serving: replicas in service after it.
            settled: none is starting or leaving.

        Returns:
            The number that is wanted; None while there is nothing to say.
        """
        if serving != self._serving or not settled:
            self._waited.clear()
            self._busy.clear()
            self._serving = serving
            return None
        step_s = max(metrics["time/step_s"], 1e-9)
        self._waited.append(metrics["time/replay_wait_s"] / step_s)
        self._busy.append(metrics["time/rollout_s"] / step_s)
        if len(self._waited) < (self._waited.maxlen or 1):
            return None
        return wanted(serving=serving, low=self._low, high=self._high, waited=list(self._waited), busy=list(self._busy))
