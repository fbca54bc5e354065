"""What a person sees while a run goes on: phases, steps, seconds left. Plain lines, and a status line on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Prints phases and steps, and keeps each phase's wall seconds.

    Args:
        console: where to; None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase, and time it.

        Args:
            name: such as "cold start".

        Yields:
            Nothing.
        """
        begin = time.monotonic()
        self.say(f"[bold]{name}[/bold] ...")
        try:
            with self._console.status(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
        self.say(f"[bold]{name}[/bold] done in {self.seconds[name]:.1f} s")

    def say(self, text: str) -> None:
        """Print one line.

        Args:
            text: with rich markup.
        """
        self._console.print(text)

    def step(self, step: int, num_steps: int, metrics: dict[str, float], *, seconds_left: float) -> None:
        """Print a training step.

        Args:
            step: from 1.
            num_steps: of the run.
            metrics: of the step.
            seconds_left: estimate.
        """
        self.say(
            f"step {step}/{num_steps}  reward {metrics['reward/mean']:.3f}  accuracy {metrics['accuracy/lenient']:.3f}  "
            f"effective {metrics['effective_query_ratio']:.2f}  replay {metrics['replay/size']:.0f}  "
            f"staleness {metrics['staleness/mean']:.1f}  {metrics['time/step_s']:.1f} s/step  {seconds_left:.0f} s left"
        )


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
