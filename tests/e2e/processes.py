"""A ``fedspine run`` from outside: started as a person would, watched by its events, and its processes found."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil

from broker_server.serving.storage.events import AnyEvent, EventReader
from edge_runtime.system.interpreter import module_command

TIMEOUT_S = 300.0
"""Longest time of one run in these tests."""


class Run:
    """One ``fedspine run`` (or other command) process, in ``folder`` (None: the current one)."""

    def __init__(self, *arguments: str, folder: Path | None = None, command: str = "run") -> None:
        self.process = subprocess.Popen(
            module_command("broker_server", command, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        )
        self.output = ""
        self.errors = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit code."""
        self.output, self.errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor alone, as a terminal would."""
        self.process.send_signal(number)

    def descendants(self) -> list[psutil.Process]:
        """Every process it started, and theirs."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def child(self, *words: str) -> psutil.Process:
        """The process whose command line holds all ``words``."""
        for process in self.descendants():
            with contextlib.suppress(psutil.Error):
                if all(word in process.cmdline() for word in words):
                    return process
        message = f"no process with {words}"
        raise AssertionError(message)


def fedspine_run(*arguments: str) -> Run:
    """Run to the end."""
    with Run(*arguments) as run:
        run.wait()
    return run


def error_line(run: Run) -> str:
    """The one line on standard error."""
    lines = run.errors.splitlines()
    assert len(lines) == 1, run.errors
    assert lines[0].startswith("fedspine: error: "), lines
    return lines[0]


def wait_for_event(root: Path, wanted: Callable[[AnyEvent], bool], run: Run) -> AnyEvent:
    """The first event of a run that ``wanted`` accepts."""
    reader = EventReader(root / "events.jsonl")
    give_up_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up_at:
        for event in reader.new_events():
            if wanted(event):
                return event
        assert run.process.poll() is None, run.process.communicate()
        time.sleep(0.02)
    message = "the event did not come"
    raise AssertionError(message)


def all_events(root: Path) -> list[AnyEvent]:
    """Every event of a run so far."""
    return list(EventReader(root / "events.jsonl").new_events())


def assert_gone(processes: list[psutil.Process]) -> None:
    """Every process has ended (a zombie that waits for its parent has)."""
    _, alive = psutil.wait_procs(processes, timeout=15)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert alive == []


def report_of(root: Path) -> dict[str, Any]:
    """``report.json``."""
    report: dict[str, Any] = json.loads((root / "report.json").read_text(encoding="utf-8"))
    return report


def wait_for_port(port: int) -> None:
    """Until somebody listens there."""
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        time.sleep(0.02)
    message = f"nobody listens on port {port}"
    raise AssertionError(message)


@contextlib.contextmanager
def mosquitto(program: str, directory: Path, config: str) -> Iterator[None]:
    """A mosquitto of one's own."""
    file = directory / "mosquitto.conf"
    file.write_text(config)
    with subprocess.Popen([program, "-c", str(file)], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
