"""Displays of work in progress: one that redraws itself on a terminal, and plain lines elsewhere.

A *view* is whatever is shown: a run, or the runs of a comparison.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Final, Generic, Protocol, Self, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from edge_runtime.bounds.plain import plain

_LOG = logging.getLogger("fedspine")

QUIET_S: Final = 60.0
"""Pause between two plain lines on how things stand."""

View = TypeVar("View")
View_contra = TypeVar("View_contra", contravariant=True)


class Display(Protocol[View_contra]):
    """Shows the progress of work."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen tidy."""

    def step(self, text: str) -> None:
        """A step of the work begins, or something worth a line happened."""

    def refresh(self, view: View_contra) -> None:
        """Show how things stand; called a few times a second."""


def make_display(
    stream: IO[str],
    render: Callable[[View, float], RenderableType],
    standing: Callable[[View], str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Display[View]:
    """The display that fits ``stream``: live on a terminal or in a notebook that has ipywidgets, else plain lines.

    Args:
        stream: where to show.
        render: the terminal's picture of a view, and of the seconds since the start.
        standing: a line on it, to print once a minute where there is no terminal; None = nothing is printed.
        clock: monotonic seconds.
    """
    console = Console(file=stream)
    is_live = console.is_terminal and (not console.is_jupyter or importlib.util.find_spec("ipywidgets") is not None)
    return LiveDisplay(console, render, clock) if is_live else PlainDisplay(stream, standing, clock)


class QuietDisplay:
    """Shows nothing; each event goes to the logger ``fedspine``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, text: str) -> None:
        """Log a line."""
        _LOG.info(plain(text))

    def refresh(self, view: object) -> None:
        """Nothing to redraw."""


class PlainDisplay(Generic[View]):
    """One line for each thing that happened, with the seconds since the start; see :func:`make_display`."""

    def __init__(
        self,
        stream: IO[str],
        standing: Callable[[View], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._standing = standing
        self._clock = clock
        self._start = self._last = clock()

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

    def refresh(self, view: View) -> None:
        """Print a line on how things stand, if there is one to print and the last one is long ago."""
        if self._standing is not None and self._clock() - self._last >= QUIET_S:
            self._last = self._clock()
            self.step(self._standing(view))


class LiveDisplay(Generic[View]):
    """Lines scroll by above a part that is redrawn; see :func:`make_display`."""

    def __init__(
        self,
        console: Console,
        render: Callable[[View, float], RenderableType],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._render = render
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

    def refresh(self, view: View) -> None:
        """Redraw the live part."""
        self._live.update(self._render(view, self._clock() - self._start))
