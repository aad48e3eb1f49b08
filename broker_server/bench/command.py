"""``fedspine bench engine``: parse, let the contenders take turns, print the table, write the file."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from broker_server.errors import InterruptedRunError, RunFailedError

if TYPE_CHECKING:
    from broker_server.bench.schema import BenchReport
    from broker_server.bench.settings import Base, BenchSettings
    from edge_runtime.wire.manifest import Task

bench = typer.Typer(
    help="Benchmarks of this installation on this machine.", no_args_is_help=True, pretty_exceptions_enable=False
)


@bench.callback()
def root() -> None:
    """Benchmarks of this installation on this machine."""


def engine(  # noqa: PLR0913, PLR0917 - each is an option
    model: Annotated[str, typer.Option(metavar="DIR", help="Directory or hub id of a pretrained model.")],
    task: Annotated[str, typer.Option(help="text-classification or causal-lm.")],
    batch_size: Annotated[int, typer.Option(help="Examples in a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of an example.")] = 128,
    arm: Annotated[str, typer.Option(metavar="P:R", help="Pruning ratio and LoRA rank.")] = "0.0:8",
    targets: Annotated[str, typer.Option(metavar="A,B,...", help="Linear layers with LoRA; default: all.")] = "",
    base: Annotated[str, typer.Option(help="Frozen weights: stored, float32, float16, int8 or nf4.")] = "stored",
    against: Annotated[str, typer.Option(metavar="A,B,...", help="Peers, such as torch; empty = none.")] = "torch",
    runs: Annotated[int, typer.Option(help="Processes of each contender; 5 or more for a figure.")] = 5,
    steps: Annotated[int, typer.Option(help="Timed steps of each process.")] = 20,
    threads: Annotated[int, typer.Option(help="Threads of each contender; 0 = one a core.")] = 0,
    num_labels: Annotated[
        int | None, typer.Option(help="Classes, where the checkpoint has no classifier; default: 2.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of tokens, classes, first adapter and plan.")] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Where all figures are written.")] = None,
) -> None:
    """Measure the device engine against its peers: time, memory, cold start, and that all do the same work.

    Contenders take turns, each in a process of its own; figures are medians over runs. See docs/engine.md.

    Raises:
        FedSpineError: see docs/exit-codes.md.
    """
    # Imported here, so that `fedspine --help` needs none of it.
    from broker_server.bench.schema import encode_bench  # noqa: PLC0415
    from broker_server.bench.settings import BenchSettings, check_json, parse_arm  # noqa: PLC0415
    from broker_server.bench.table import differing, render  # noqa: PLC0415
    from broker_server.run.processes import num_cores  # noqa: PLC0415
    from edge_runtime.wire.files import write_atomically  # noqa: PLC0415

    settings = BenchSettings(
        model=model,
        task=cast("Task", task),
        batch_size=batch_size,
        length=length,
        arm=parse_arm(arm),
        targets=targets,
        base=cast("Base", base),
        runs=runs,
        steps=steps,
        threads=threads or num_cores(),
        against=tuple(name.strip() for name in against.split(",") if name.strip()),
        num_labels=num_labels,
        seed=seed,
    )
    if json is not None:
        check_json(json)
    report = _measure(settings)
    sys.stdout.write(render(report))
    if json is not None:
        write_atomically(json, encode_bench(report))
    if wrong := differing(report):
        raise RunFailedError("; ".join(wrong))


bench.command(help=str(engine.__doc__).partition("Raises:")[0])(engine)


def _measure(settings: BenchSettings) -> BenchReport:
    """The benchmark; a signal ends all of its processes, and it.

    Raises:
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP.
    """
    from broker_server.bench.engine import measure  # noqa: PLC0415 - as above

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return measure(settings, _say, lambda: datetime.now(UTC).timestamp())
    except KeyboardInterrupt as error:
        msg = "interrupted, all processes ended; nothing was written"
        raise InterruptedRunError(msg) from error


def _say(line: str) -> None:
    sys.stderr.write(f"fedspine: {line}\n")


def _interrupt(_number: int, _frame: object) -> None:
    """Let a signal end a benchmark as Ctrl-C does."""
    raise KeyboardInterrupt
