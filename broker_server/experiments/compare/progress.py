"""The display of a comparison under way: a table of its runs and a bar; without a terminal, a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker_server.experiments.compare.children import RunChild
from broker_server.serving.report.quality import duration_text


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonView:
    """The state of a comparison."""

    running: Sequence[RunChild]
    num_done: int
    """Runs that ended."""
    num_runs: int
    """All that are wanted."""

    def __str__(self) -> str:
        """A line."""
        done = f"{self.num_done} of {self.num_runs} runs done"
        return "; ".join([done, *(standing(child) for child in self.running)])


def standing(child: RunChild) -> str:
    """Describe the state of a run in a few words."""
    view = child.view
    finished = view.rounds[-1].round_number if view.rounds else 0
    quality = view.quality()
    return f"{child.key} round {finished}/{view.num_rounds}{f', {quality[1]}' if quality else ''}"


def render(view: ComparisonView, elapsed_s: float) -> RenderableType:
    """A table of the runs under way, and a bar of all runs with the time that they took so far."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("method", "seed", "round", "quality", "time"):
        table.add_column(column, no_wrap=True)
    for child in view.running:
        finished = child.view.rounds[-1].round_number if child.view.rounds else 0
        quality = child.view.quality()
        table.add_row(
            Text(child.key.method),
            str(child.key.seed),
            f"{finished}/{child.view.num_rounds}",
            " -> ".join(quality) if quality else "-",
            duration_text(child.seconds),
        )
    bar = ProgressBar(total=max(1, view.num_runs), completed=view.num_done, width=60)
    words = f"{view.num_done} of {view.num_runs} runs done, {duration_text(elapsed_s)} so far"
    return Group(table, Text(""), bar, Text(words, style="dim"))
