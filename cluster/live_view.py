"""The live view for people at a terminal: what is under way, how far the run is, how its measures go.

Owns the picture. It is drawn while a phase is under way and gone with the last one, so that whatever ends a run leaves a usable terminal.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 48  # steps of a measure's line: what fits beside its value in 80 columns
MEASURES = {  # metric -> how a person calls it, and how its value is written
    "reward/mean": ("reward", "{:.3f}"),
    "accuracy/lenient": ("accuracy", "{:.3f}"),
    "effective_query_ratio": ("effective queries", "{:.2f}"),
    "response/length_mean": ("response tokens", "{:.0f}"),
    "ratio/ess": ("effective sample size", "{:.2f}"),
    "staleness/mean": ("staleness", "{:.1f}"),
    "replay/size": ("replay rows", "{:.0f}"),
    "kl/engine_mismatch": ("engine mismatch", "{:.1e}"),
    "rollout/actors": ("rollout actors", "{:.0f}"),
}
TIMES = {"time/replay_wait_s": "waiting", "time/update_s": "update", "time/weight_sync_s": "weights"}


class LiveView:
    """A picture that is drawn again in its place, with messages scrolling above it.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phases: list[tuple[str, float]] = []
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._metrics: dict[str, float] = {}
        self._step = self._num_steps = 0
        self._seconds_left = 0.0
        self._live: Live | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show its name and its seconds, below those of the phases that it lies in."""
        self._phases.append((name, time.monotonic()))
        outermost = self._live is None
        if outermost:
            self._live = Live(get_renderable=self.picture, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        try:
            yield
        finally:
            self._phases.pop()
            if outermost and self._live is not None:
                self._live.stop()
                self._live = None

    def phase_done(self, name: str, seconds: float) -> None:
        """Keep a line of it above the picture."""
        self._console.print(Text.assemble(("✓ ", "green"), name, (f"  {seconds:.1f} s", "dim")))

    def say(self, text: str) -> None:
        """Keep a message above the picture."""
        self._console.print(text, markup=False)

    def step(self, step: int, num_steps: int, metrics: dict[str, float], *, seconds_left: float) -> None:
        """Draw the step's measures behind those of the steps before."""
        self._step, self._num_steps, self._metrics, self._seconds_left = step, num_steps, metrics, seconds_left
        for name in MEASURES.keys() & metrics.keys():
            self._history[name].append(metrics[name])

    def picture(self) -> RenderableType:
        """Draw what is under way.

        Returns:
            A panel once there is a step, and the phases.
        """
        now = time.monotonic()
        phases = [Spinner("dots", Text.assemble(name, (f"  {now - begin:.0f} s", "dim"))) for name, begin in self._phases]
        if not self._step:
            return Group(*phases)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"step {self._step}/{self._num_steps}", style="bold"),
            ProgressBar(total=self._num_steps, completed=self._step, width=40),
            Text(f"{_duration(self._seconds_left)} left", style="dim"),
        )
        measures = Table.grid(padding=(0, 2))
        measures.add_column(style="dim")
        measures.add_column(justify="right", style="bold")
        measures.add_column(style="cyan", no_wrap=True)
        for name, (words, form) in MEASURES.items():
            if name in self._metrics:
                measures.add_row(words, form.format(self._metrics[name]), sparkline(self._history[name]))
        return Group(Panel(Group(head, Text(), measures, Text(), self._times()), expand=False), *phases)

    def _times(self) -> Text:
        """Where the step's seconds went."""
        whole = self._metrics.get("time/step_s", 0.0)
        parts = [f"{words} {100 * self._metrics[name] / whole:.0f} %" for name, words in TIMES.items() if whole and name in self._metrics]
        return Text(f"{whole:.1f} s a step: {', '.join(parts)}" if parts else f"{whole:.1f} s a step", style="dim")


def sparkline(values: deque[float] | list[float]) -> str:
    """Draw numbers as a line of bars, from their lowest to their highest.

    Args:
        values: the oldest first.

    Returns:
        A character each; of equal values the lowest bar.
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return BARS[0] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
