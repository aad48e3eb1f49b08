"""The runs: contenders take turns, each in a process of its own, and the machine's limit is taken between them."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from broker_server import export_door
from broker_server.benchmark.contenders import Contender
from broker_server.benchmark.products import Product
from broker_server.benchmark.settings import MAX_GRAD_NORM, WEIGHT_DECAY, BenchSettings
from broker_server.errors import ChildFailedError
from broker_server.experiments.run.processes import server_command
from broker_server.experiments.run.supervisor import Supervisor
from edge_runtime.benchmark.protocol import BenchmarkResult, RatesRequest, RatesResult
from edge_runtime.errors import ExitCode
from edge_runtime.system.files import write_atomically
from edge_runtime.wire.arms import LORA_AXES

LIMIT: Final = "limit"
"""Name of the process that times matrix products."""
PRODUCT_S: Final = 0.25
"""Time for which each product is repeated, seconds."""
_CLASSIFIER: Final = "ForSequenceClassification"
_DEFAULT_LABELS: Final = 2

Answer = TypeVar("Answer", bound=msgspec.Struct)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The result of one process of a contender."""

    result: BenchmarkResult
    cold_start_s: float
    """From before the process was started to its first step done."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Everything that was measured."""

    by_contender: dict[str, list[Sample]]
    """In the order of the runs."""
    best_s: dict[Product, float]
    """Least time of each matrix product over all runs."""
    p50_s: dict[Product, float]
    """Median over the runs of the median of a run."""


def over_runs(rates: Sequence[RatesResult]) -> tuple[list[float], list[float]]:
    """Of each product the least time over all runs, and the median over the runs of their medians.

    >>> over_runs([RatesResult(best_s=(1.0,), p50_s=(x,)) for x in (2.0, 9.0, 4.0)])
    ([1.0], [4.0])
    """
    least = [min(times) for times in zip(*(result.best_s for result in rates), strict=True)]
    medians = [statistics.median(times) for times in zip(*(result.p50_s for result in rates), strict=True)]
    return least, medians


class Stage:
    """Starts the processes of contenders, one after the other.

    Args:
        settings: of the benchmark.
        folder: for requests and the artifact; the caller removes it.
        supervisor: starts processes and ends them with this one.
        say: takes a line about each thing that is done.
    """

    def __init__(
        self, settings: BenchSettings, folder: Path, supervisor: Supervisor, say: Callable[[str], None]
    ) -> None:
        self.artifact = folder / "artifact"
        self.ort_models = folder / "ort-models"
        self._settings = settings
        self._folder = folder
        self._supervisor = supervisor
        self._say = say

    def export(self, source: str) -> None:
        """Export the model into :attr:`artifact`.

        Args:
            source: directory or hub id.

        Raises:
            ChildFailedError: it cannot be exported; the exit code is that of ``fedspine export``.
        """
        given = self._settings
        command = server_command("export", source, "--task", given.task, "--base", given.base)
        if given.targets:
            command += ["--targets", given.targets]
        if given.task == "text-classification" and (given.num_labels or not _has_classifier(source)):
            command += ["--num-labels", str(given.num_labels or _DEFAULT_LABELS)]
        self._say(f"exporting {Path(source).name}")
        command += ["--seed", str(given.seed), "-o", str(self.artifact)]
        self._supervisor.finish(self._supervisor.start("export", command))

    def export_ort_models(self) -> None:
        """Make ort-training models of the arm into :attr:`ort_models`, after :meth:`export`.

        Raises:
            ChildFailedError: they cannot be made; the exit code is that of ``fedspine export``.
        """
        given = self._settings
        command = server_command("export", str(self.artifact), "--format", "ort-training", "-o", str(self.ort_models))
        command += ["--arm", LORA_AXES.format((given.arm,)), "--weight-decay", str(WEIGHT_DECAY)]
        command += ["--max-grad-norm", str(MAX_GRAD_NORM), "--ort-python", given.ort_python]
        self._say("making ort-training models")
        self._supervisor.finish(self._supervisor.start("export-ort-training", command))

    def play(self, contenders: Sequence[Contender], products: Sequence[Product]) -> Samples:
        """Run every contender ``runs`` times, in turn, each run beginning with another one.

        Args:
            contenders: who takes part.
            products: matrix products to time.

        Raises:
            ChildFailedError: a process failed, or its answer cannot be read.
            DiskFullError: there is no space for a request.
        """
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        rates: list[RatesResult] = []
        for run in range(self._settings.runs):
            turn = run % (len(contenders) + 1)
            turns: list[Contender | None] = [*contenders, None]
            for contender in turns[turn:] + turns[:turn]:
                if contender is None:
                    rates.append(self._rates(products, run))
                else:
                    samples[contender.name].append(self._sample(contender, run))
        best_s, p50_s = over_runs(rates)
        return Samples(
            by_contender=samples,
            best_s=dict(zip(products, best_s, strict=True)),
            p50_s=dict(zip(products, p50_s, strict=True)),
        )

    def _sample(self, contender: Contender, run: int) -> Sample:
        request = self._settings.request(contender.engine, contender.arm, self.artifact, self.ort_models, run)
        began = time.monotonic()
        result = self._ask(contender.name, contender.command, request, BenchmarkResult, run)
        sample = Sample(result=result, cold_start_s=result.first_step_at - began)
        least_s = min(result.step_times_s)
        self._tell(contender.name, run, f"{least_s:.4g} s a step at best, {result.peak_rss_bytes / 1e6:.0f} MB")
        return sample

    def _rates(self, products: Sequence[Product], run: int) -> RatesResult:
        shapes = tuple(dataclasses.astuple(product) for product in products)
        request = RatesRequest(num_threads=self._settings.threads, shapes=shapes, min_s=PRODUCT_S)
        result = self._ask(LIMIT, export_door.process("matmul_rates"), request, RatesResult, run)
        if not len(result.best_s) == len(result.p50_s) == len(products):
            msg = f"{LIMIT} printed times of {len(result.best_s)} products, {len(products)} were asked for"
            raise ChildFailedError(msg, ExitCode.RUN_FAILED, self._folder)
        rates = [product.flops / seconds for product, seconds in zip(products, result.best_s, strict=True)]
        self._tell(LIMIT, run, f"{max(rates) / 1e9:.1f} GFLOP/s at best")
        return result

    def _ask(self, name: str, command: Sequence[str], request: msgspec.Struct, kind: type[Answer], run: int) -> Answer:
        """Start a process with a request, wait for its end, read its answer: the last line that it printed."""
        file = self._folder / f"{name}-{run}.json"
        write_atomically(file, msgspec.json.encode(request))
        child = self._supervisor.start(file.stem, [*command, str(file)])
        self._supervisor.finish(child)
        lines = [line for line in child.log.read_bytes().splitlines() if line.startswith(b"{")]
        try:
            return msgspec.json.decode(lines[-1] if lines else b"", type=kind)
        except msgspec.DecodeError as error:
            msg = f"{name} printed no {kind.__name__} ({error}): run it by itself on a request of this shape"
            raise ChildFailedError(msg, ExitCode.RUN_FAILED, child.log) from error

    def _tell(self, name: str, run: int, what: str) -> None:
        self._say(f"run {run + 1} of {self._settings.runs}: {name}: {what}")


def _has_classifier(source: str) -> bool:
    """Return whether a checkpoint's configuration names a classifier; False if it cannot be read."""
    try:
        found = json.loads((Path(source) / "config.json").read_bytes()).get("architectures")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(found, list) and any(str(name).endswith(_CLASSIFIER) for name in found)
