"""``curve``: the held-out loss of every round, a line each, in the run directory's ``curve.csv``."""

from __future__ import annotations

from pathlib import Path

from broker_server.serving.callbacks import Callback, RunInfo
from broker_server.serving.storage.records import RoundRecord


class Curve(Callback):
    """Appends a line a round."""

    def __init__(self) -> None:
        self._path = Path()

    def on_run_start(self, run: RunInfo) -> None:
        """Begin the file; a run that goes on finds it there."""
        self._path = run.directory / "curve.csv"
        if not self._path.exists():
            self._path.write_text("round,loss\n", encoding="utf-8")

    def on_round_end(self, record: RoundRecord) -> None:
        """Add a line."""
        if record.evaluation is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{record.round_number},{record.evaluation.loss}\n")
