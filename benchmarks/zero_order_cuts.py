"""Progress that is predicted of ``fedspzo`` at every cut, and where ``--zo-move-cut`` goes.

    python -m benchmarks.zero_order_gradient agnews-artifact --train train.jsonl --test test.jsonl --json figures.json
    python -m benchmarks.zero_order_cuts agnews-artifact figures.json --examples 96

For each cut, from the gradient, its noise and curvature by block: progress for each forward pass as a multiple of
``mezo``'s, each at its best learning rate, with a lower part's rate of 0.16, of half, and of the best part of the
other. Then the rule of ``--zo-move-cut`` on scalars that are drawn from the same figures, the blocks staying as they
are: where it ends, and its mean progress. docs/zero-order.md has the formula.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np

from broker_server.methods.zero_order.cut import Stack, next_cut
from broker_server.methods.zero_order.log import Log
from edge_runtime.engine.artifact import Artifact
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.zero_order.parts import TunedParts

NUM_INNER: Final = 4
HALF: Final = 0.5
RATIOS: Final = (0.16, HALF)
NUM_ROUNDS: Final = 40
DRAWS: Final = 20
"""Outer perturbations of a round."""
SEEDS: Final = range(20)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some blocks.

    Attributes:
        signal: squared norm of the gradient of the mean loss.
        seen: that of a step's examples, with their noise.
        trace: of the Hessian.
    """

    signal: float
    seen: float
    trace: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], num_examples: int) -> Self:
        """Of rows of ``benchmarks.zero_order_gradient``; a square that came out below 0 is 0."""
        signal = sum(max(0.0, row["squared_norm"]) for row in rows)
        return cls(
            signal=signal,
            seen=signal + sum(row["variance"] for row in rows) / num_examples,
            trace=sum(max(0.0, row["trace"]) for row in rows),
        )


def progress(lower: Part, upper: Part, ratio: float, num_passes: float) -> float:
    """Fall of the loss for a forward pass at the best learning rate, curvature even within a part; in some unit.

    Args:
        lower: below the cut.
        upper: above it.
        ratio: of the lower part's learning rate to the upper's.
        num_passes: of a step, with ``NUM_INNER`` perturbations of the upper part for one of the lower.
    """
    noise = _noise_of_lower(lower, upper) * ratio**2 + _noise_of_upper(lower, upper)
    return (ratio * lower.signal + upper.signal) ** 2 / noise / num_passes


def best_ratio(lower: Part, upper: Part) -> float:
    """That with the most progress: each rate in proportion to the signal over curvature times the estimate's square."""
    return lower.signal / _noise_of_lower(lower, upper) / (upper.signal / _noise_of_upper(lower, upper))


def of_mezo(everything: Part) -> float:
    """As :func:`progress`, of one perturbation of all."""
    return everything.signal**2 / (everything.trace * everything.seen) / 2


def _noise_of_lower(lower: Part, upper: Part) -> float:
    return lower.trace * (lower.seen + upper.seen / NUM_INNER)


def _noise_of_upper(lower: Part, upper: Part) -> float:
    return upper.trace * (upper.seen + lower.seen) / NUM_INNER


def path(stack: Stack, shares: Mapping[int, float], first: int, seed: int) -> list[int]:
    """Cuts of the rounds, where the blocks keep their shares of the gradient."""
    log, cuts = Log(), [first]
    for number in range(1, NUM_ROUNDS):
        rng = np.random.default_rng([seed, number])
        share = shares[cuts[-1]]
        lower = np.sqrt(share) * rng.normal(size=(DRAWS, 1, 1))
        upper = np.sqrt(1 - share) * rng.normal(size=(DRAWS, 1, NUM_INNER))
        logged = LoggedRound(
            round_number=number,
            cut=cuts[-1],
            lower_learning_rate=HALF,
            learning_rate=1.0,
            num_outer=1,
            num_inner=NUM_INNER,
            scalars=(lower + upper).astype("<f4").tobytes(),
        )
        log = log.after(logged, 1.0)
        cuts.append(next_cut(log, stack, first))
    return cuts


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table in Markdown, and where the rule ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("figures", type=Path, help="what `benchmarks.zero_order_gradient --json` wrote")
    parser.add_argument("--examples", type=int, default=96, help="of a step, of all devices, default: %(default)s")
    parser.add_argument("--rank", type=int, default=8, help="LoRA rank, default: %(default)s")
    options = parser.parse_args(arguments)
    manifest = Artifact.open(options.artifact).manifest
    stack = Stack.of(manifest, lambda cut: TunedParts.of(manifest, options.rank, cut))
    rows = list(json.loads(options.figures.read_text(encoding="utf-8")).values())  # the head comes last

    if any(Part.of(some, options.examples).signal == 0 for some in (rows[:1], rows[stack.cuts[-1] :])):
        parser.error("a gradient is not told from 0: measure it with more --num-batches and --eval-examples")
    unit = of_mezo(Part.of(rows, options.examples))
    shares, gains = {}, {}
    print("| cut | gradient below, of a step | best ratio | progress at 0.16 | at half | at the best |")
    print("|---|---|---|---|---|---|")
    for cut in stack.cuts:
        lower, upper = (Part.of(some, options.examples) for some in (rows[:cut], rows[cut:]))
        num_passes = 2 * (stack.passes[cut] + NUM_INNER * (1 - stack.passes[cut]))
        best = best_ratio(lower, upper)
        found = [progress(lower, upper, ratio, num_passes) / unit for ratio in (*RATIOS, best)]
        shares[cut], gains[cut] = lower.seen / (lower.seen + upper.seen), found[1]
        print(f"| {cut} | {shares[cut]:.2f} | {best:.2f} | " + " | ".join(f"{gain:.2f}" for gain in found) + " |")
    for first in (stack.cuts[-1], manifest.num_layers // 2):
        paths = [path(stack, shares, first, seed) for seed in SEEDS]
        ends = Counter(cuts[-1] for cuts in paths)
        mean = np.mean([[gains[cut] for cut in cuts] for cuts in paths])
        told = ", ".join(f"{count} at {cut}" for cut, count in sorted(ends.items()))
        print(f"\n--zo-move-cut from {first}: of {len(paths)} runs end {told}; mean progress {mean:.2f}")


if __name__ == "__main__":
    main()
