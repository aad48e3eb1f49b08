"""Live progress of a comparison: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker_server.experiments.compare.children import RunChild
from broker_server.serving.report.quality import duration_text

QUIET_S: Final = 60.0
"""Pause between two lines on how runs stand, where there is no terminal."""


class Display(Protocol):
    """Shows how a comparison goes."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen tidy."""

    def line(self, text: str) -> None:
        """Something worth a line happened."""

    def refresh(self, running: Sequence[RunChild], num_done: int, num_runs: int) -> None:
        """Show how runs stand; called a few times a second."""


def make_display(stream: IO[str], clock: Callable[[], float] = time.monotonic) -> Display:
    """The display that fits ``stream``."""
    console = Console(file=stream)
    return LiveDisplay(console, clock) if console.is_terminal else PlainDisplay(stream, clock)


def standing(child: RunChild) -> str:
    """How a run stands, in a few words."""
    view = child.view
    finished = view.rounds[-1].round_number if view.rounds else 0
    quality = view.quality()
    return f"{child.key} round {finished}/{view.num_rounds}{f', {quality[1]}' if quality else ''}"


class PlainDisplay:
    """One line for each thing that happened, and one a minute on how runs stand."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._start = self._last = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def line(self, text: str) -> None:
        """Print a line."""
        self._stream.write(f"[{self._clock() - self._start:7.1f} s] {text}\n")
        self._stream.flush()

    def refresh(self, running: Sequence[RunChild], num_done: int, num_runs: int) -> None:
        """Print a line when the last one is long ago."""
        if self._clock() - self._last >= QUIET_S:
            self._last = self._clock()
            self.line("; ".join([f"{num_done} of {num_runs} runs done", *(standing(child) for child in running)]))


class LiveDisplay:
    """Lines scroll by above a table of runs and a bar."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start = clock()
        self._live = Live(Text(""), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def line(self, text: str) -> None:
        """Print a line above the live part."""
        self._console.print(Text(f"{self._clock() - self._start:7.1f} s  ", style="dim").append(text, style="default"))

    def refresh(self, running: Sequence[RunChild], num_done: int, num_runs: int) -> None:
        """Redraw the live part."""
        self._live.update(render(running, num_done, num_runs, self._clock() - self._start))


def render(running: Sequence[RunChild], num_done: int, num_runs: int, elapsed_s: float) -> RenderableType:
    """A table of the runs under way, and a bar of all runs with the time that is left."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("method", "seed", "round", "quality", "time"):
        table.add_column(column, no_wrap=True)
    for child in running:
        finished = child.view.rounds[-1].round_number if child.view.rounds else 0
        quality = child.view.quality()
        table.add_row(
            Text(child.key.method),
            str(child.key.seed),
            f"{finished}/{child.view.num_rounds}",
            " -> ".join(quality) if quality else "-",
            duration_text(child.seconds),
        )
    bar = ProgressBar(total=max(1, num_runs), completed=num_done, width=60)
    words = f"{num_done} of {num_runs} runs done, {duration_text(elapsed_s)} so far"
    return Group(table, Text(""), bar, Text(words, style="dim"))
