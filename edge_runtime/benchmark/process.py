"""The process of a contender: it reads the request, makes the steps and prints the measurements."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_runtime.benchmark.errors import NotFiniteError, RequestError
from edge_runtime.benchmark.protocol import BenchmarkRequest, BenchmarkResult
from edge_runtime.errors import ExitCode, FedSpineError
from edge_runtime.system.resident import peak_rss_bytes

Asked = TypeVar("Asked", bound=msgspec.Struct)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An engine that is ready to train."""

    step: Callable[[], float]
    """Makes one optimizer step on the next batch of the work; returns the loss before the step, nats."""
    num_trainable: int
    """Number of trained elements."""


Prepare = Callable[[BenchmarkRequest], Contender]
"""Prepares an engine: does everything before the first step, late imports included."""


def contend(prepare: Prepare, packages: Sequence[str], arguments: Sequence[str]) -> ExitCode:
    """Run one contender, for the ``__main__`` of its module.

    Args:
        prepare: prepares the engine.
        packages: distributions whose versions are in the result.
        arguments: arguments of the command line: a file with the request.

    Returns:
        Exit code of the process; for every code but OK there is one line on stderr.
    """

    def work(request: BenchmarkRequest) -> BenchmarkResult:
        measured = _measure(prepare(request), request)
        versions = {package: metadata.version(package) for package in packages}
        return msgspec.structs.replace(measured, versions=versions)

    return answer(BenchmarkRequest, work, arguments)


def answer(kind: type[Asked], work: Callable[[Asked], msgspec.Struct], arguments: Sequence[str]) -> ExitCode:
    """Read a request from a file, do its work, and print the result as one line of JSON.

    Args:
        kind: type of the request.
        work: does the work and returns the result.
        arguments: arguments of the command line: the file.

    Returns:
        Exit code of the process; for every code but OK there is one line on stderr.
    """
    try:
        answered = work(_read(kind, arguments))
    except FedSpineError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last door: one line instead of a traceback
        return _fail(f"unexpected {type(error).__name__}: {error}", ExitCode.UNEXPECTED)
    sys.stdout.buffer.write(msgspec.json.encode(answered) + b"\n")  # UTF-8, whatever the terminal's encoding is
    sys.stdout.buffer.flush()
    return ExitCode.OK


def _read(kind: type[Asked], arguments: Sequence[str]) -> Asked:
    if len(arguments) != 1:
        msg = f"got {len(arguments)} arguments, expected one: a file with a {kind.__name__}"
        raise RequestError(msg)
    try:
        return msgspec.json.decode(Path(arguments[0]).read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{arguments[0]} holds no {kind.__name__}: {error}; `fedspine bench engine` writes one"
        raise RequestError(msg) from error


def _measure(contender: Contender, request: BenchmarkRequest) -> BenchmarkResult:
    """Make the steps.

    Raises:
        NotFiniteError: a loss is not finite.
    """
    losses = [contender.step()]
    first_step_at = time.monotonic()
    times_s: list[float] = []
    for _ in range(1, request.hyper_parameters.num_local_steps):
        began = time.perf_counter()
        losses.append(contender.step())
        times_s.append(time.perf_counter() - began)
    if wrong := [loss for loss in losses if not math.isfinite(loss)]:
        step = losses.index(wrong[0]) + 1
        msg = f"the loss of {request.engine} is {wrong[0]} in step {step} of {len(losses)}: nothing can be compared"
        raise NotFiniteError(msg)
    begin = request.num_warmup_steps - 1  # step_times_s does not contain the first step
    return BenchmarkResult(
        num_trainable=contender.num_trainable,
        first_step_at=first_step_at,
        step_times_s=tuple(times_s[begin : begin + request.num_timed_steps]),
        losses=tuple(losses),
        peak_rss_bytes=peak_rss_bytes(),
        versions={},
    )


def _fail(message: str, code: ExitCode) -> ExitCode:
    sys.stderr.write(f"fedspine-contender: error: {' '.join(message.split())}\n")
    return code
