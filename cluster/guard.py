"""The guard that notices a run which collapses. Values only, no Ray.

Owns when a run has gone wrong beyond what more steps can mend. Must not know where metrics come from or how a run is stopped.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping

from conf.schema import GuardConfig

SUSPICION_STEPS = 3  # a median of three is not moved by one odd step, and notices the second bad one

_WORST = {"ratio/ess": 0.0, "ratio/mean": math.inf, "effective_query_ratio": 0.0, "accuracy/mean": 0.0}
"""What is watched, and what stands for a value that is no number."""


class RunCollapsed(RuntimeError):
    """The policy or the learning signal is lost; the message says by which measure and from which checkpoint the run can go on."""


class CollapseGuard:
    """Judges the medians of a run's latest steps.

    Args:
        config: thresholds.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=config.window_steps) for name in _WORST}
        self._best_accuracy = 0.0

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take in a step.

        Args:
            metrics: of the step; a step without an update has no ratios and is passed over for them.
        """
        for name, values in self._recent.items():
            if name in metrics:
                values.append(metrics[name] if math.isfinite(metrics[name]) else _WORST[name])
        accuracies = self._recent["accuracy/mean"]
        if len(accuracies) == self._config.window_steps:
            self._best_accuracy = max(self._best_accuracy, statistics.median(accuracies))

    @property
    def suspicious(self) -> bool:
        """Whether the last few steps are beyond a threshold: no time to replace an older checkpoint."""
        return self._config.enabled and self._violation(min(SUSPICION_STEPS, self._config.window_steps)) is not None

    @property
    def collapse(self) -> str | None:
        """What is beyond its threshold over the whole window, as the beginning of a sentence; None: nothing."""
        return self._violation(self._config.window_steps) if self._config.enabled else None

    def _violation(self, num_steps: int) -> str | None:
        config = self._config
        ess, ratio = self._median("ratio/ess", num_steps), self._median("ratio/mean", num_steps)
        if ess is not None and ess < config.min_ess:
            return f"the median of ratio/ess over {num_steps} steps is {ess:.3g}, below guard.min_ess = {config.min_ess:g}"
        if ratio is not None and not 1 / config.max_ratio <= ratio <= config.max_ratio:
            bounds = f"guard.max_ratio = {config.max_ratio:g} to either side of 1"
            return f"the median of ratio/mean over {num_steps} steps is {ratio:.3g}, more than {bounds}"
        effective, accuracy = self._median("effective_query_ratio", num_steps), self._median("accuracy/mean", num_steps)
        if effective is None or accuracy is None or effective >= config.min_effective_query_ratio:
            return None
        # Prompts may have stopped teaching because all of them are solved, or never have taught: then nothing was lost. A policy that was
        # hardly ever right loses a large share of nearly nothing by chance.
        if accuracy >= config.min_accuracy_share * self._best_accuracy or self._best_accuracy - accuracy < config.min_accuracy_fall:
            return None
        return (
            f"the median of effective_query_ratio over {num_steps} steps is {effective:.3g}, below guard.min_effective_query_ratio ="
            f" {config.min_effective_query_ratio:g}, and accuracy fell from {self._best_accuracy:.3f} to {accuracy:.3f}"
        )

    def _median(self, name: str, num_steps: int) -> float | None:
        """Of the latest steps that had the metric; None while there were too few."""
        values = list(self._recent[name])[-num_steps:]
        return statistics.median(values) if len(values) == num_steps else None
