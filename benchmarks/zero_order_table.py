"""Tables of what ``benchmarks.zero_order`` wrote: ``python -m benchmarks.zero_order_table FOLDER [--json FILE]``.

For each run, by seed and as the median over seeds: held-out loss at the start and fallen at the end, accuracy, the loss
fallen for each operation and for each byte beyond the start, and both as multiples of those of ``--against`` (the run
whose name begins so) at the same seed. The start is the probe's head, or the model before training where there is none.
``--json`` writes all results into one file, without what they were tuned by.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    lines = [
        "| run | loss | fallen | accuracy | TFLOP | kB a device | fallen / TFLOP | ratio | fallen / kB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in by_run.items():
        fallen = {seed: Gain(result) for seed, result in runs.items()}
        before = {seed: Gain(result) for seed, result in base.items() if seed in runs}
        cells = [
            spread([one.start for one in fallen.values()], 4),
            spread([one.fallen for one in fallen.values()], 4),
            spread([one.accuracy for one in fallen.values()], 3),
            f"{statistics.median(one.tflop for one in fallen.values()):.2f}",
            f"{statistics.median(one.kilobytes for one in fallen.values()):.1f}",
            spread([one.per_tflop for one in fallen.values()], 4),
            spread([fallen[seed].per_tflop / one.per_tflop for seed, one in before.items()], 2),
            spread([one.per_kilobyte for one in fallen.values()], 5),
            spread([fallen[seed].per_kilobyte / one.per_kilobyte for seed, one in before.items()], 2),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


class Gain:
    """Figures of a run beyond its start."""

    def __init__(self, result: Result) -> None:
        first, last = result["points"][0], result["points"][-1]
        self.start = first["loss"]
        self.fallen = first["loss"] - last["loss"]
        self.accuracy = last["accuracy"] - first["accuracy"]
        self.tflop = (last["flops"] - first["flops"]) / 1e12
        size = sum(last[name] - first[name] for name in ("bytes_up", "bytes_down"))
        self.kilobytes = size / 1e3 / result["options"]["devices"]
        self.per_tflop = self.fallen / self.tflop
        self.per_kilobyte = self.fallen / self.kilobytes


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
