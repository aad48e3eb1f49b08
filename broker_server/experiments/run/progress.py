"""The terminal's display of a run: a table of devices and a bar of rounds."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker_server.experiments.run.view import RunView
from broker_server.serving.report.quality import duration_text, metric_name

EARLIER: Final = 8
"""Arms of earlier rounds in the table."""

_STYLES = {"training": "green", "uploading": "cyan", "fetching": "yellow", "offline": "red", "ended": "red"}


def render(view: RunView, elapsed_s: float) -> RenderableType:
    """Devices, and below them the rounds, as they stand after so many seconds."""
    return Group(_devices(view), _rounds(view, elapsed_s))


def _devices(view: RunView) -> RenderableType:
    """A table with each device's state, arm and step; without arms where there is one."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    arm, earlier = (("arm",), ("arms so far",)) if view.axes else ((), ())
    for column in ("device", "state", *arm, "steps", "", *earlier):
        table.add_column(column, no_wrap=True)
    for device_id, device in view.devices.items():
        state = "update accepted" if device.has_updated and device.state == "idle" else device.state
        done = device.num_steps if device.has_updated else device.step
        table.add_row(
            Text(view.name(device_id)),
            Text(state, style=_STYLES.get(device.state, "dim")),
            *(Text(device.arm or "-") for _ in arm),
            f"{done}/{device.num_steps}" if device.num_steps else "-",
            ProgressBar(total=max(1, device.num_steps), completed=done, width=16),
            *(Text(" ".join(device.earlier[-EARLIER:]), style="dim") for _ in earlier),
        )
    return table


def _rounds(view: RunView, elapsed_s: float) -> RenderableType:
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
