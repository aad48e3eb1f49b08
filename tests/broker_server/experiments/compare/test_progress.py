"""The display of a comparison under way: a line a minute in a file, a table and a bar on a terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from broker_server.experiments.compare.children import RunChild
from broker_server.experiments.compare.config import RunKey
from broker_server.experiments.compare.progress import ComparisonView, render
from broker_server.experiments.run.display import QUIET_S, LiveDisplay, PlainDisplay
from broker_server.experiments.run.supervisor import Supervisor
from broker_server.serving.storage.events import EventLog, RoundFinished
from tests.broker_server.experiments.compare.samples import comparison
from tests.broker_server.report_samples import round_records


@pytest.fixture
def view(tmp_path: Path) -> Iterator[ComparisonView]:
    """One run that has played a round, and one that was done before."""
    compared = comparison(run={"rounds": 3, "arms": "0.0:4", "sparsity": 0.5, "task": "causal-lm"})
    log = EventLog(tmp_path / "events.jsonl")
    for record in round_records()[:2]:
        log.write(RoundFinished(at=0.0, record=record))
    log.close()
    with Supervisor(tmp_path / "logs") as supervisor:
        process = supervisor.start("run", [sys.executable, "-c", ""])
        key = RunKey(method="fedit", seed=7)
        child = RunChild(key, compared.settings(compared.run_keys[0]), process, tmp_path / "events.jsonl")
        child.poll()
        yield ComparisonView(running=[child], num_done=1, num_runs=4)


def test_a_file_gets_a_line_on_the_runs_once_a_minute(view: ComparisonView) -> None:
    stream, now = io.StringIO(), [0.0]
    with PlainDisplay[ComparisonView](stream, str, clock=lambda: now[0]) as display:
        for now[0] in (1.0, QUIET_S - 1, QUIET_S, QUIET_S + 1, 2 * QUIET_S):
            display.refresh(view)

    rounds = view.running[0].view.num_rounds
    line = f"1 of 4 runs done; {view.running[0].key} round 1/{rounds}, 148.4"
    assert stream.getvalue().splitlines() == [f"[  60.0 s] {line}", f"[ 120.0 s] {line}"]


def test_a_terminal_gets_a_table_of_runs_and_a_bar(view: ComparisonView) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with LiveDisplay(console, render, clock=lambda: 0.0) as display:
        display.step("fedit, seed 3: failed: [red]why[/red]\nforged")
        display.refresh(view)

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("[red]why[/red]\\nforged", "fedit", "403.4 -> 148.4", "1 of 4 runs done"):
        assert part in shown
