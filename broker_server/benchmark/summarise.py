"""From the samples of all runs to the report."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from broker_server.benchmark.contenders import Contender
from broker_server.benchmark.play import Sample, Samples
from broker_server.benchmark.products import Products, total_flops
from broker_server.benchmark.schema import BenchReport, EngineFigures, Limit, Ratios, ShapeRate, Spread
from broker_server.benchmark.settings import LOSS_STEPS, LOSS_TOLERANCE, BenchSettings
from broker_server.versions import environment
from edge_runtime.engine.model import MODES
from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire.arms import LORA_AXES

FUSED = MODES[0]
"""Contender that the others are set against."""


def summarise(
    settings: BenchSettings,
    manifest: Manifest,
    contenders: Sequence[Contender],
    products: Products,
    samples: Samples,
    *,
    now: float,
    loads: tuple[float, float],
) -> BenchReport:
    """The report of a benchmark.

    Args:
        settings: of the benchmark.
        manifest: of the artifact.
        contenders: who took part; ``fused`` is one of them.
        products: of a step of ``fused``.
        samples: one at least of each contender, and the times of every product.
        now: Unix seconds.
        loads: the machine's load average over a minute, before and after.
    """
    medians = {c.name: _medians(settings, samples.by_contender[c.name]) for c in contenders}
    engines = {c.name: _figures(c, samples, medians) for c in contenders}
    limit, step_s = _limit(products, samples), medians[FUSED].step_s_p50
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return BenchReport(
        created_at=now,
        date=datetime.fromtimestamp(now, UTC).date().isoformat(),
        model_name=manifest.model_name,
        settings={
            **given,
            "model": manifest.model_name,  # by name, never a path of this machine
            "ort_python": None,
            "arm": LORA_AXES.format((settings.arm,)),
            "against": ",".join(settings.against),
        },
        engines=engines,
        same_work=all(figures.same_work is not False for figures in engines.values()),
        limit_ratio=limit.step_s / step_s,
        limit_ratio_per_shape=limit.per_shape_step_s / step_s,
        limit_ratio_p50=limit.step_flops / limit.p50_flops_per_s / step_s,
        limit=limit,
        machine=_machine(loads),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Medians:
    step_s_p50: float
    tokens_per_s: float
    peak_rss_bytes: float
    cold_start_s: float


def _step_s(sample: Sample) -> float:
    return statistics.median(sample.result.step_times_s)


def _medians(settings: BenchSettings, samples: Sequence[Sample]) -> _Medians:
    step_s = statistics.median(map(_step_s, samples))
    return _Medians(
        step_s_p50=step_s,
        tokens_per_s=settings.batch_size * settings.length / step_s,
        peak_rss_bytes=statistics.median(sample.result.peak_rss_bytes for sample in samples),
        cold_start_s=statistics.median(sample.cold_start_s for sample in samples),
    )


def _figures(contender: Contender, samples: Samples, medians: dict[str, _Medians]) -> EngineFigures:
    mine, median, fused = samples.by_contender[contender.name], medians[contender.name], medians[FUSED]
    first = mine[0].result
    gap = same = None
    if contender.reference is not None:
        other = samples.by_contender[contender.reference][0].result
        pairs = zip(first.losses[: LOSS_STEPS + 1], other.losses[: LOSS_STEPS + 1], strict=True)
        gap = max(abs(loss - expected) for loss, expected in pairs)
        same = gap <= LOSS_TOLERANCE and first.num_trainable == other.num_trainable
    return EngineFigures(
        arm=LORA_AXES.format((contender.arm,)),
        base=contender.base,
        num_trainable=first.num_trainable,
        step_s_p50=median.step_s_p50,
        step_s_spread=_spread(list(map(_step_s, mine))),
        tokens_per_s=median.tokens_per_s,
        peak_rss_bytes=round(median.peak_rss_bytes),
        peak_rss_spread=_spread([sample.result.peak_rss_bytes for sample in mine]),
        cold_start_s=median.cold_start_s,
        cold_start_spread=_spread([sample.cold_start_s for sample in mine]),
        loss_after_50=first.losses[LOSS_STEPS],
        reference=contender.reference,
        loss_gap=gap,
        same_work=same,
        to_fused=Ratios(
            **{f.name: getattr(median, f.name) / getattr(fused, f.name) for f in dataclasses.fields(median)}
        ),
        versions=first.versions,
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(least=min(values), most=max(values))


def _limit(products: Products, samples: Samples) -> Limit:
    shapes = tuple(
        ShapeRate(
            shape=dataclasses.astuple(product),
            count=count,
            best_s=samples.best_s[product],
            p50_s=samples.p50_s[product],
            flops_per_s=product.flops / samples.best_s[product],
        )
        for product, count in sorted(products.items())
    )
    flops, best = total_flops(products), max(shape.flops_per_s for shape in shapes)
    return Limit(
        step_flops=flops,
        best_flops_per_s=best,
        step_s=flops / best,
        p50_flops_per_s=max(product.flops / samples.p50_s[product] for product in products),
        per_shape_step_s=sum(shape.count * shape.best_s for shape in shapes),
        shapes=shapes,
    )


def _machine(loads: tuple[float, float]) -> dict[str, str]:
    before, after = loads
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"memory_bytes": str(memory), "load_before": f"{before:.1f}", "load_after": f"{after:.1f}"}
    return {**environment(), "processor": _processor(Path("/proc/cpuinfo")), **found}


def _processor(cpuinfo: Path) -> str:
    """The processor's name, as Linux tells it on x86; empty if it does not."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
