"""Schedulers on a simulated fleet, against the oracle: table, JSON and plots.

    python -m benchmarks.bandit --out DIR [--seeds 3] [--scale 1.0] [--fleet even] [--schedulers fedspine ...]

Steady: 100 rounds. Drift: 60 rounds, one class takes three times as long from round 31 on, once for each class.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.bandit_figures import Figures, cumulative_regret, figures, recovery, time_ratios
from benchmarks.bandit_fleet import FLEETS, Drift, play
from broker_server.methods.scheduler import SCHEDULERS

STEADY_ROUNDS, DRIFT_ROUNDS, DRIFT_FROM = 100, 60, 31
DRIFTS = ("slow", "middle")
"""The fast class does not bound the round, also when it is three times slower."""


def measure(name: str, fleet: str, scale: float, seed: int) -> dict[str, Any]:
    """All runs of one scheduler and seed on a fleet by name, and the oracle's beside them."""
    classes = FLEETS[fleet](scale)
    oracle = play("oracle", classes, STEADY_ROUNDS, seed)
    played = oracle if name == "oracle" else play(name, classes, STEADY_ROUNDS, seed)
    result: dict[str, Any] = {
        "scheduler": name,
        "seed": seed,
        **dataclasses.asdict(figures(played, oracle)),
        "time_ratios": time_ratios(played, oracle).round(4).tolist(),
        "regrets": cumulative_regret(played, oracle).round(4).tolist(),
        "arms": [p.arms for p in played],
        "recovery_rounds": {},
        "drift_infeasible_ratio": {},
        "drift_time_ratios": {},
    }
    for drifting in DRIFTS:
        drift = Drift(name=drifting, from_round=DRIFT_FROM)
        best = play("oracle", classes, DRIFT_ROUNDS, seed, drift)
        mine = best if name == "oracle" else play(name, classes, DRIFT_ROUNDS, seed, drift)
        ratios = time_ratios(mine, best)
        result["recovery_rounds"][drifting] = recovery(ratios, DRIFT_FROM)
        result["drift_infeasible_ratio"][drifting] = figures(mine, best).infeasible_ratio
        result["drift_time_ratios"][drifting] = ratios.round(4).tolist()
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: median over seeds, and the worst seed in brackets where the acceptance is about a bound."""
    head = (
        "| scheduler | round time / oracle | learning speed / oracle | rounds to 5 % | infeasible after round 10 | "
        "recovery, slow class | recovery, middle class | regret | exponent | late exponent | idle |"
    )
    lines = [head, "|" + " --- |" * 11]
    for name in dict.fromkeys(r["scheduler"] for r in results):
        mine = [r for r in results if r["scheduler"] == name]
        cells = [name, *(f"{np.median([r[key] for r in mine]):.2f}" for key in ("round_time_ratio", "speed_ratio"))]
        cells.append(_rounds([r["settled_round"] for r in mine]))
        shares = [r["infeasible_ratio"] for r in mine]
        cells.append(f"{np.median(shares):.1%} ({max(shares):.1%})")
        cells += [_rounds([r["recovery_rounds"][drifting] for r in mine]) for drifting in DRIFTS]
        cells.append(f"{np.median([r['regret'] for r in mine]):.1f}")
        cells += [f"{np.median([r[key] for r in mine]):.2f}" for key in ("regret_exponent", "late_exponent")]
        cells.append(f"{np.median([r['idle_ratio'] for r in mine]):.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rounds(rounds: list[int | None]) -> str:
    known = [float("inf") if n is None else n for n in rounds]
    median, worst = float(np.median(known)), max(known)
    if not np.isfinite(median):
        return "never"
    return f"{median:.0f} ({'never' if not np.isfinite(worst) else f'{worst:.0f}'})"


def plot(results: list[dict[str, Any]], out: Path) -> None:
    """Round time over the oracle's, with and without drift; cumulative regret on logarithmic axes; arms of fedspine."""
    names = list(dict.fromkeys(r["scheduler"] for r in results))
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    for name in names:
        mine = [r for r in results if r["scheduler"] == name]
        for axis, curves in (
            (axes[0], [r["time_ratios"] for r in mine]),
            (axes[1], [r["drift_time_ratios"][DRIFTS[0]] for r in mine]),
            (axes[2], [r["regrets"] for r in mine]),
        ):
            values = np.median(np.array(curves), axis=0)
            axis.plot(np.arange(1, len(values) + 1), values, label=name, lw=2.2 if name == "fedspine" else 1)
    for axis in axes[:2]:
        axis.axhline(1.05, color="grey", ls=":", lw=1)
        axis.set(xlabel="round", ylabel="round time / oracle's", yscale="log")
    axes[0].set_title("steady (simulated)")
    axes[1].set_title(f"slow class 3x slower from round {DRIFT_FROM} (simulated)")
    axes[2].set(xlabel="round", ylabel="cumulative regret", xscale="log", yscale="log", title="regret (simulated)")
    axes[2].legend(fontsize=7)
    figure.tight_layout()
    for suffix in ("svg", "png"):
        figure.savefig(out / f"bandit.{suffix}", dpi=110)
    plt.close(figure)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for bandit.json, bandit.md and plots")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--fleet", choices=sorted(FLEETS), default="jetson", help="jetson has memory caps, others none")
    parser.add_argument("--scale", type=float, default=1.0, help="devices: 30, 40 and 10 times this")
    parser.add_argument("--schedulers", nargs="+", default=sorted(SCHEDULERS), choices=sorted(SCHEDULERS))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ProcessPoolExecutor(given.jobs) as pool:
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        jobs = [pool.submit(measure, name, given.fleet, given.scale, s) for name in given.schedulers for s in seeds]
        results = [job.result() for job in jobs]
    document = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "fleet": given.fleet,
        "scale": given.scale,
        "fields": [field.name for field in dataclasses.fields(Figures)],
        "results": results,
    }
    (given.out / "bandit.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    text = table(results)
    (given.out / "bandit.md").write_text(text + "\n", encoding="utf-8")
    plot(results, given.out)
    print(text)


if __name__ == "__main__":
    main()
