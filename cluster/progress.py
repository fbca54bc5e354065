"""What people and programs see while a run goes on: phases, steps, seconds left. How it is shown is the view's business."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.views import PlainView, View


class Progress:
    """Tells a view of phases and steps, and keeps each phase's wall seconds.

    Args:
        view: shows them; None: plain lines on standard output.
        note: also takes a phase's name and a step's count, as texts by name; None: nobody does.
    """

    def __init__(self, view: View | None = None, *, note: Callable[[dict[str, str]], None] | None = None) -> None:
        self._view = view or PlainView()
        self._note = note or (lambda notes: None)
        self.seconds: dict[str, float] = {}
        self.current = "starting"  # the phase under way

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase, and time it.

        Args:
            name: such as "cold start".

        Yields:
            Nothing.
        """
        begin, before, self.current = time.monotonic(), self.current, name
        self._note({"phase": name})
        try:
            with self._view.phase(name):
                yield
        finally:
            self.current = before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
        self._view.phase_done(name, self.seconds[name])

    def say(self, text: str) -> None:
        """Tell something.

        Args:
            text: for people.
        """
        self._view.say(text)

    def step(self, step: int, num_steps: int, metrics: dict[str, float], *, seconds_left: float) -> None:
        """Tell of a training step.

        Args:
            step: from 1.
            num_steps: of the run.
            metrics: of the step.
            seconds_left: estimate.
        """
        self._note({"progress": f"step {step}/{num_steps}, {seconds_left:.0f} s left"})
        self._view.step(step, num_steps, metrics, seconds_left=seconds_left)


class Countdown:
    """Says how much of a known number is done and how long the rest will take, now and then.

    Args:
        progress: where to.
        name: of what is counted.
        total: of it.
        every_s: at most one line in so many seconds.
    """

    def __init__(self, progress: Progress, name: str, total: int, *, every_s: float = 10.0) -> None:
        self._progress = progress
        self._name = name
        self._total = total
        self._every_s = every_s
        self._done = 0
        self._begin = self._said = time.monotonic()

    def one(self) -> None:
        """Count one as done."""
        self._done += 1
        now = time.monotonic()
        if now - self._said < self._every_s and self._done < self._total:
            return
        self._said = now
        left = (self._total - self._done) * (now - self._begin) / self._done
        self._progress.say(f"{self._name}: {self._done}/{self._total}, {left:.0f} s left")
