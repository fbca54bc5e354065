"""How progress is shown: plain lines, JSON lines, or a view that is drawn again in its place.

Owns words and colours. Must not know Ray or the roles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console

from cluster.live_view import LiveView
from conf.schema import Terminal


class View(Protocol):
    """Shows phases and steps."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Show that a phase is under way; phases may lie in one another."""

    def phase_done(self, name: str, seconds: float) -> None:
        """Show that it has ended without a failure."""

    def say(self, text: str) -> None:
        """Show a message."""

    def step(self, step: int, num_steps: int, metrics: dict[str, float], *, seconds_left: float) -> None:
        """Show a training step."""


def make_view(kind: Terminal, console: Console | None = None) -> View:
    """Make the view that a user has asked for.

    Args:
        kind: report.terminal.
        console: to show it on; None: standard output.

    Returns:
        For auto the live view on a terminal, else plain lines.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    if kind is Terminal.json:
        return JsonView(console.file)
    if kind is Terminal.live or (kind is Terminal.auto and console.is_terminal):
        return LiveView(console)
    return PlainView(console)


class PlainView:
    """A line for each phase, message and step.

    Args:
        console: where to; None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Print its name."""
        self._print(f"{name} ...")
        yield

    def phase_done(self, name: str, seconds: float) -> None:
        """Print how long it took."""
        self._print(f"{name} done in {seconds:.1f} s")

    def say(self, text: str) -> None:
        """Print it."""
        self._print(text)

    def step(self, step: int, num_steps: int, metrics: dict[str, float], *, seconds_left: float) -> None:
        """Print the few measures that a person follows."""
        self._print(
            f"step {step}/{num_steps}  reward {metrics['reward/mean']:.3f}  accuracy {metrics['accuracy/lenient']:.3f}  "
            f"effective {metrics['effective_query_ratio']:.2f}  replay {metrics['replay/size']:.0f}  "
            f"staleness {metrics['staleness/mean']:.1f}  {metrics['time/step_s']:.1f} s/step  {seconds_left:.0f} s left"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)


class JsonView:
    """One JSON object a line: ``event`` is "phase", "phase_done", "message" or "step"; a step brings all of its metrics.

    Args:
        file: where to; None: standard output.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Write its name."""
        self._write("phase", name=name)
        yield

    def phase_done(self, name: str, seconds: float) -> None:
        """Write how long it took."""
        self._write("phase_done", name=name, seconds=round(seconds, 3))

    def say(self, text: str) -> None:
        """Write it."""
        self._write("message", text=text)

    def step(self, step: int, num_steps: int, metrics: dict[str, float], *, seconds_left: float) -> None:
        """Write all metrics of the step."""
        self._write("step", step=step, num_steps=num_steps, seconds_left=round(seconds_left, 1), metrics=metrics)

    def _write(self, event: str, **values: object) -> None:
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
        self._file.flush()
