"""Tables of the results of ``benchmarks.zero_order``: ``python -m benchmarks.zero_order_table FOLDER [--json FILE]``.

For each run, by seed and as the median over seeds: loss at the start and fallen at the end, on held-out examples and on
the devices' own, the accuracy gained on those held out, and work and bytes beyond the start. Then the loss fallen for
each operation and for each byte as a multiple of that of ``--against`` (the run whose name begins so): of the sums over
seeds, since the loss of a single seed may have fallen by next to nothing, with the jackknife's standard error of three
seeds or more. The start is the probe's head, or the model before training where there is none.
``--json`` writes all results into one file, without what they were tuned by.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `benchmarks.zero_order` wrote")
    parser.add_argument("--against", default="decomfl", help="run to compare with, default: %(default)s")
    parser.add_argument("--tune", action="store_true", help="runs that rates are chosen by, in place of the others")
    parser.add_argument("--json", type=Path, help="file for all results")
    options = parser.parse_args(arguments)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.folder.glob("*.json"))]
    results = [result for result in results if result["options"]["tune"] == options.tune]
    if options.json is not None:
        options.json.write_text(json.dumps(merged(results), indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(results, options.against)))


def table(results: Sequence[Result], against: str) -> list[str]:
    """Lines of a table in Markdown, a row for each run."""
    by_run: dict[str, dict[int, Result]] = {}
    for result in results:
        by_run.setdefault(result["run"], {})[result["seed"]] = result
    base = next((runs for name, runs in by_run.items() if name.startswith(against)), {})
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for name, runs in by_run.items():
        gains = [Gain(result) for result in runs.values()]
        before = [Gain(base[seed]) for seed in runs if seed in base]
        cells = [
            spread([one.start for one in gains], 4),
            spread([one.fallen["loss"] for one in gains], 4),
            spread([one.fallen["own_loss"] for one in gains], 4),
            spread([one.accuracy for one in gains], 3),
            f"{statistics.median(one.tflop for one in gains):.2f}",
            f"{statistics.median(one.kilobytes for one in gains):.1f}",
            *(
                ratio(gains, before, loss, per) if len(before) == len(gains) else "-"
                for per in ("tflop", "kilobytes")
                for loss in ("loss", "own_loss")
            ),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


COLUMNS: Final = (
    "run",
    "loss",
    "fallen",
    "fallen, own examples",
    "accuracy",
    "TFLOP",
    "kB a device",
    "fallen / TFLOP, times",
    "own",
    "fallen / kB, times",
    "own",
)


FEWEST: Final = 3
"""Seeds that an error is estimated from."""


class Gain:
    """Figures of a run beyond its start."""

    def __init__(self, result: Result) -> None:
        first, last = result["points"][0], result["points"][-1]
        self.start = first["loss"]
        self.fallen = {name: first[name] - last[name] for name in ("loss", "own_loss")}
        self.accuracy = last["accuracy"] - first["accuracy"]
        self.tflop = (last["flops"] - first["flops"]) / 1e12
        size = sum(last[name] - first[name] for name in ("bytes_up", "bytes_down"))
        self.kilobytes = size / 1e3 / result["options"]["devices"]


def ratio(gains: Sequence[Gain], before: Sequence[Gain], loss: str, per: Literal["tflop", "kilobytes"]) -> str:
    """Loss fallen for each unit of work over that of other runs, and its standard error.

    A dash where the others' loss did not fall. The error is the jackknife's: each seed is left out once. It needs three
    seeds, and others whose loss fell whichever seed is left out.

    Args:
        gains: of a run, by seed.
        before: of the run to compare with, the same seeds in the same order.
        loss: held-out (``loss``) or of the devices' own examples (``own_loss``).
        per: unit of work.
    """

    def of(chosen: Sequence[int]) -> float | None:
        ours, theirs = (
            sum(some[seed].fallen[loss] for seed in chosen) / sum(getattr(some[seed], per) for seed in chosen)
            for some in (gains, before)
        )
        return ours / theirs if theirs > 0 else None

    seeds = range(len(gains))
    value = of(seeds)
    if value is None:
        return "-"
    others = [of([seed for seed in seeds if seed != left_out]) for left_out in seeds] if len(seeds) >= FEWEST else []
    known = [one for one in others if one is not None]
    if not known or len(known) < len(others):
        return f"{value:.2f}"
    error = math.sqrt((len(known) - 1) * statistics.pvariance(known))
    return f"{value:.2f} +- {error:.2f}"


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and each value in brackets where there are more.

    >>> spread([0.5, 0.25, 1.0], 2)
    '0.50 (0.50, 0.25, 1.00)'
    """
    if not values:
        return "-"
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return each if len(values) == 1 else f"{statistics.median(values):.{digits}f} ({each})"


def merged(results: Sequence[Result]) -> dict[str, Any]:
    """All results as one; fields that they share are written once."""
    first, *others = results
    for other in others:
        if other["options"] | {"budget": 0} != first["options"] | {"budget": 0}:
            msg = f"{other['run']} has other options than {first['run']}: give a folder of its own to each setting"
            raise ValueError(msg)
    return {
        "environment": first["environment"],
        "options": first["options"],
        "runs": [
            {"run": result["run"], "seed": result["seed"], "budget": result["options"]["budget"]}
            | {"points": result["points"]}
            for result in results
        ],
    }


if __name__ == "__main__":
    main()
