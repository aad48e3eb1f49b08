"""``fedspine bench engine``: parse, let the contenders take turns, print the table, write the file."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import typer

from broker_server.benchmark import options
from broker_server.errors import InterruptedRunError, RunFailedError

if TYPE_CHECKING:
    from broker_server.benchmark.schema import BenchReport
    from broker_server.benchmark.settings import BenchSettings
    from edge_runtime.formats.manifest import BaseDtype, Task

bench = typer.Typer(
    help="Benchmark this installation on this machine.", no_args_is_help=True, pretty_exceptions_enable=False
)


@bench.callback()
def root() -> None:
    """Benchmark this installation on this machine."""


def engine(  # noqa: PLR0913, PLR0917 - each is an option
    model: options.Model,
    task: options.Task,
    batch_size: options.BatchSize = 8,
    length: options.Length = 128,
    arm: options.OneArm = "0.0:8",
    targets: options.Targets = "",
    base: options.BaseType = "stored",
    against: options.Against = "torch",
    runs: options.Runs = 5,
    steps: options.Steps = 20,
    threads: options.Threads = 0,
    num_labels: options.NumLabels = None,
    seed: options.Seed = 0,
    ort_python: options.OrtPython = ".venv-ort-training/bin/python",
    json: options.JsonFile = None,
) -> None:
    """Measure the device engine against its peers: step time, memory and cold start, on the same work.

    Contenders take turns, each in a process of its own. Figures are medians over runs. See docs/engine.md.

    Raises:
        FedSpineError: see docs/exit-codes.md.
    """
    # Imported here, so that `fedspine --help` needs none of it.
    from broker_server.benchmark.settings import BenchSettings, check_json, parse_arm  # noqa: PLC0415
    from broker_server.benchmark.table import differing, render  # noqa: PLC0415
    from broker_server.experiments.run.processes import num_cores  # noqa: PLC0415
    from broker_server.serving.report.encoding import encode  # noqa: PLC0415
    from edge_runtime.system.files import write_atomically  # noqa: PLC0415

    settings = BenchSettings(
        model=model,
        task=cast("Task", task),
        batch_size=batch_size,
        length=length,
        arm=parse_arm(arm),
        targets=targets,
        base=cast("BaseDtype", base),
        runs=runs,
        steps=steps,
        threads=threads or num_cores(),
        against=tuple(name.strip() for name in against.split(",") if name.strip()),
        num_labels=num_labels,
        seed=seed,
        ort_python=ort_python,
    )
    if json is not None:
        check_json(json)
    report = _measure(settings)
    sys.stdout.write(render(report))
    if json is not None:
        write_atomically(json, encode(report))
    if wrong := differing(report):
        raise RunFailedError("; ".join(wrong))


bench.command(help=str(engine.__doc__).partition("Raises:")[0])(engine)


def _measure(settings: BenchSettings) -> BenchReport:
    """The benchmark; a signal ends all of its processes, and it.

    Raises:
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP.
    """
    from broker_server.benchmark.engine import measure  # noqa: PLC0415 - as above

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return measure(settings, _say, lambda: datetime.now(UTC).timestamp())
    except KeyboardInterrupt as error:
        msg = "interrupted; all processes ended, nothing was written"
        raise InterruptedRunError(msg) from error


def _say(line: str) -> None:
    sys.stderr.write(f"fedspine: {line}\n")


def _interrupt(_number: int, _frame: object) -> None:
    """Let a signal end a benchmark as Ctrl-C does."""
    raise KeyboardInterrupt
