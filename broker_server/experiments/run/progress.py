"""Live progress of a run: a display that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from broker_server.experiments.run.view import RunView
from broker_server.serving.report.quality import duration_text, metric_name
from edge_runtime.bounds.plain import plain

_LOG = logging.getLogger("fedspine")


class Display(Protocol):
    """Shows how a run goes."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen tidy."""

    def step(self, text: str) -> None:
        """A step of the job begins, or something worth a line happened."""

    def refresh(self, view: RunView) -> None:
        """Show the state of the rounds; called a few times a second."""


def make_display(stream: IO[str], clock: Callable[[], float] = time.monotonic) -> Display:
    """The display that fits ``stream``: live on a terminal or in a notebook that has ipywidgets, else plain lines."""
    console = Console(file=stream)
    is_live = console.is_terminal and (not console.is_jupyter or importlib.util.find_spec("ipywidgets") is not None)
    return LiveDisplay(console, clock) if is_live else PlainDisplay(stream, clock)


class QuietDisplay:
    """Shows nothing; what happened goes to the logger ``fedspine``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, text: str) -> None:
        """Log a line."""
        _LOG.info(plain(text))

    def refresh(self, view: RunView) -> None:
        """Nothing to redraw."""


class PlainDisplay:
    """One line for each thing that happened, with the seconds since the start."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._start = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def step(self, text: str) -> None:
        """Print a line."""
        self._stream.write(f"[{self._clock() - self._start:6.1f} s] {plain(text)}\n")
        self._stream.flush()

    def refresh(self, view: RunView) -> None:
        """Nothing to redraw."""


class LiveDisplay:
    """Lines scroll by above a table of devices and a bar of rounds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start = clock()
        self._spinner = Spinner("line" if console.options.ascii_only else "dots", style="cyan")
        self._live = Live(self._spinner, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def step(self, text: str) -> None:
        """Print a line above the live part, and name it beside the spinner."""
        text = plain(text)
        self._console.print(Text(f"{self._clock() - self._start:6.1f} s  ", style="dim").append(text, style="default"))
        self._spinner.update(text=Text(text, style="cyan"))
        self._live.update(self._spinner)

    def refresh(self, view: RunView) -> None:
        """Redraw the live part."""
        self._live.update(Group(render_devices(view), render_rounds(view, self._clock() - self._start)))


EARLIER: Final = 8
"""Arms of earlier rounds in the table."""

_STYLES = {"training": "green", "uploading": "cyan", "fetching": "yellow", "offline": "red", "ended": "red"}


def render_devices(view: RunView) -> RenderableType:
    """A table with each device's state, arm and step."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("device", "state", "arm", "steps", "", "arms so far"):
        table.add_column(column, no_wrap=True)
    for device_id, device in view.devices.items():
        state = "update accepted" if device.has_updated and device.state == "idle" else device.state
        done = device.num_steps if device.has_updated else device.step
        table.add_row(
            Text(view.name(device_id)),
            Text(state, style=_STYLES.get(device.state, "dim")),
            Text(device.arm or "-"),
            f"{done}/{device.num_steps}" if device.num_steps else "-",
            ProgressBar(total=max(1, device.num_steps), completed=done, width=16),
            Text(" ".join(device.earlier[-EARLIER:]), style="dim"),
        )
    return table


def render_rounds(view: RunView, elapsed_s: float) -> RenderableType:
    """A bar of rounds with quality, time and time left."""
    finished = view.rounds[-1].round_number if view.rounds else 0
    doing = " (evaluating)" if view.is_between_rounds else ""
    now = [f"round {min(finished + 1, view.num_rounds)}/{view.num_rounds}{doing}"]
    if quality := view.quality():
        now.append(f"{metric_name(view.task)} {quality[0]} -> {quality[1]}")
    times = [f"{duration_text(elapsed_s)} so far"]
    if view.time_left_s is not None:
        times.append(f"about {duration_text(view.time_left_s)} of rounds left")
    bar = ProgressBar(total=max(1, view.num_rounds), completed=finished, width=60)
    lines = (Text(" | ".join(now), style="bold"), Text(" | ".join(times), style="dim"))
    return Group(Text(""), bar, *lines)
