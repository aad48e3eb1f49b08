"""``fedspine compare``: parses the file, plays the runs that are not finished, writes the results."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker_server.errors import ConfigError, InterruptedRunError, RunExistsError, RunFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_server.experiments.compare.config import Comparison, RunKey
    from broker_server.experiments.compare.layout import ComparisonDirectory
    from broker_server.experiments.compare.play import Results


def compare(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Comparison: methods, seeds and settings (docs/compare.md).")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory for the runs, the tables and the charts.")],
    quick: Annotated[bool, typer.Option("--quick", help="Play the smaller form (table quick).")] = False,  # noqa: FBT002 - a flag
    jobs: Annotated[
        int, typer.Option(min=0, help="Number of runs at a time; 0 = as many as cores and memory allow.")
    ] = 0,
    method: Annotated[list[str] | None, typer.Option(help="Play only runs of this method. May be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Play only runs with this seed. May be repeated.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write tables of finished runs.")] = False,  # noqa: FBT002 - a flag
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a row for each method, seed, round and device, as CSV."),
    ] = None,
) -> None:
    """Compare methods: play each method with each seed as a run of its own, and tabulate the results.

    After an interruption the same command goes on: it keeps finished runs and resumes an interrupted one.

    Raises:
        FedSpineError: see docs/exit-codes.md.
    """
    # Imported here, so that `fedspine --help` needs none of it.
    from broker_server.experiments.compare import play  # noqa: PLC0415
    from broker_server.experiments.compare.config import Comparison  # noqa: PLC0415
    from broker_server.experiments.compare.layout import ComparisonDirectory  # noqa: PLC0415
    from broker_server.experiments.compare.progress import render  # noqa: PLC0415
    from broker_server.experiments.run.display import make_display  # noqa: PLC0415
    from broker_server.serving.storage import run_lock  # noqa: PLC0415

    comparison = Comparison.load(config, quick=quick)
    keys = _wanted(comparison, method or [], seed or [])
    directory = ComparisonDirectory(out)
    play.check(comparison, directory)
    if csv is not None and (csv.is_dir() or not csv.absolute().parent.is_dir()):
        msg = f"--csv {csv} cannot be written: give the name of a file in a directory that is there"
        raise ConfigError(msg)
    first = comparison.settings(comparison.run_keys[0])
    jobs = jobs or play.default_jobs(first.num_devices, is_emulated=first.is_emulated)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    _make(out)
    try:
        with run_lock.hold(out, owner="comparison"), make_display(sys.stdout, render, standing=str) as display:
            if report_only:
                results = play.Results(finished=play.load_finished(comparison, directory))
            else:
                results = play.play(comparison, directory, keys, jobs, display)
            _write(comparison, directory, results, csv)
    except KeyboardInterrupt as error:
        msg = "interrupted; all processes ended, the same command goes on"
        raise InterruptedRunError(msg) from error
    _conclude(directory, results, keys)


def _wanted(comparison: Comparison, methods: Sequence[str], seeds: Sequence[int]) -> list[RunKey]:
    """Runs that are asked for."""
    for name, given, known in (
        ("method", methods, [method.name for method in comparison.methods]),
        ("seed", seeds, comparison.seeds),
    ):
        if unknown := [value for value in given if value not in known]:
            msg = f"--{name} {unknown[0]!r} is not in the comparison: {', '.join(map(str, known))}"
            raise ConfigError(msg)
    return [
        key
        for key in comparison.run_keys
        if (not methods or key.method in methods) and (not seeds or key.seed in seeds)
    ]


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        msg = f"{out} is not a directory: give another --out"
        raise RunExistsError(msg) from error


def _write(comparison: Comparison, directory: ComparisonDirectory, results: Results, csv: Path | None) -> None:
    """``summary.json``, the tables and charts that are made of it, and the rows where they are asked for."""
    from broker_server.experiments.compare.csv_rows import to_csv  # noqa: PLC0415
    from broker_server.experiments.compare.page import render_page  # noqa: PLC0415
    from broker_server.experiments.compare.summarise import summarise  # noqa: PLC0415
    from broker_server.experiments.compare.tables import to_markdown  # noqa: PLC0415
    from broker_server.serving.report.encoding import encode  # noqa: PLC0415
    from edge_runtime.system.files import write_atomically  # noqa: PLC0415

    if not results.finished and results.failed:
        raise RunFailedError(_failures(results))
    summary = summarise(comparison, results.finished, results.failed, datetime.now(UTC).timestamp())
    write_atomically(directory.summary_json, encode(summary))
    write_atomically(directory.tables, to_markdown(summary, level=1).encode())
    write_atomically(directory.page, render_page(summary).encode())
    if csv is not None:
        finished = [key for key in comparison.run_keys if key in results.finished]
        write_atomically(csv, to_csv({key: directory.report(key) for key in finished}).encode())


def _conclude(directory: ComparisonDirectory, results: Results, keys: Sequence[RunKey]) -> None:
    """Last words.

    Raises:
        RunFailedError: runs failed.
    """
    sys.stdout.write(f"\n{directory.page}, {directory.tables}, {directory.summary_json}\n")
    if results.failed:
        msg = f"{len(results.failed)} of {len(keys)} runs failed: {_failures(results)}"
        raise RunFailedError(msg)


def _failures(results: Results) -> str:
    """Return lines on the failed runs, and the next step."""
    texts = [f"{key}: {error}" for key, error in results.failed.items()]
    more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
    return f"{'; '.join(texts[:3])}{more}; the others are kept; the same command runs these again"


def _interrupt(_number: int, _frame: object) -> None:
    """Let a signal end a comparison as Ctrl-C does."""
    raise KeyboardInterrupt
