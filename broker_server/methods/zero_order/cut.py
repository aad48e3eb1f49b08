"""The cut between the two parts, if the server moves it: high first, lower as more of the gradient is below it.

After each round the scalars give the share of the gradient's energy below the cut. The progress of a forward pass at
every cut follows from these shares (docs/zero-order.md), and the cut moves towards the best. All of it follows from the
log, so a restarted server makes the same assignments; a logged round holds its cut. Ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, Self

import numpy as np

from broker_server.errors import ConfigError
from broker_server.methods.zero_order.log import SHARE_DRAWS, Log, LowerShare
from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import Manifest, TensorSpec
from edge_runtime.zero_order.parts import TunedParts, count_elements

MOST_INNER: Final = 128
"""Most inner perturbations; the log holds as many outer perturbations as are needed."""
MARGIN: Final = 1.1
"""Smallest predicted gain for which the cut moves; a smaller gain is within the noise, and the cut would oscillate."""
KNOWN_MARGIN: Final = 1.05
"""The same for a cut at which scalars were measured: its gain is not guessed."""
POWER: Final = 3
"""Less than in proportion: a share that is guessed too low is measured next, one that is guessed too high never is."""
MOST_MOVED: Final = 8
"""A move is at most the blocks divided by this, and at least one block."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Shares of tuned elements and of a forward pass below each cut, from 0 to the last block."""

    elements: tuple[float, ...]
    """Share of the tuned elements."""
    passes: tuple[float, ...]
    """Share of a forward pass."""

    @classmethod
    def of(cls, manifest: Manifest, parts_at: Callable[[int], TunedParts]) -> Self:
        """Shares of a model.

        Args:
            manifest: manifest of the artifact.
            parts_at: returns the tuned tensors in the two parts at a cut.
        """
        sizes = [count_elements(parts_at(cut).lower) for cut in range(manifest.num_layers)]
        num_tuned, costs = count_elements(parts_at(0).upper), _costs(manifest)
        return cls(
            elements=tuple(size / num_tuned for size in sizes),
            passes=tuple(sum(costs[:cut]) / sum(costs) for cut in range(manifest.num_layers)),
        )

    @property
    def cuts(self) -> tuple[int, ...]:
        """Cuts with a block and tuned tensors on both sides, ascending and consecutive."""
        return tuple(cut for cut, size in enumerate(self.elements) if 0 < size < 1)

    def first(self, given: int | None) -> int:
        """Return the cut of the first round: the given cut, or a high one.

        Raises:
            TensorError: the model has no cut, or not the given one.
        """
        if not self.cuts:
            msg = "the model has no two blocks with factors for --zo-move-cut to move between"
            raise TensorError(msg)
        if given is not None and given not in self.cuts:
            msg = f"with --zo-move-cut it is {self.cuts[0]} to {self.cuts[-1]}, so that something is tuned either side"
            raise TensorError(msg)
        return self.cuts[-1] if given is None else given

    def progress(self, cut: int, share: float, rate: float, num_inner: float) -> float:
        """Decrease of the loss per forward pass if noise limits the learning rate, relative to MeZO with one rate.

        Args:
            cut: one of :attr:`cuts`.
            share: share of the gradient's energy below the cut, 0 to 1.
            rate: ratio of the lower part's learning rate to the upper part's.
            num_inner: perturbations of the upper part for each perturbation of the lower part.
        """
        size, passes = self.elements[cut], self.passes[cut]
        noise = rate**2 * size * (share + (1 - share) / num_inner) + (1 - size) / num_inner
        return (rate * share + 1 - share) ** 2 / noise / (passes + num_inner * (1 - passes))

    def shares_below(self, log: Log) -> dict[int, float]:
        """The gradient's share below each of the cuts, from the shares that a log has for some of them.

        The last measurement at a cut is used, unless it contradicts later measurements at other cuts: the part between
        two cuts cannot be negative. From one of these cuts to the next the share is assumed to grow with the elements'
        share to the power of :data:`POWER`.
        """
        known = {0.0: 0.0, 1.0: 1.0}  # by the share of the elements
        for found in reversed(measured(log)):
            size = self.elements[found.last.cut]
            if size not in known:
                least = max(share for below, share in known.items() if below < size)
                most = min(share for above, share in known.items() if above > size)
                known[size] = min(max(found.share, least), most)
        sizes = np.array(sorted(known))
        shares = np.array([known[size] for size in sizes])
        asked = np.array([self.elements[cut] for cut in self.cuts])
        place = np.searchsorted(sizes, asked, side="right")
        way = (asked - sizes[place - 1]) / np.diff(sizes)[place - 1]
        found = shares[place - 1] + np.diff(shares)[place - 1] * way**POWER
        return dict(zip(self.cuts, found.tolist(), strict=True))


def check_movable(settings: Mapping[str, object]) -> None:
    """Refuse settings whose scalars do not give the gradient's share of each part.

    Args:
        settings: values of all options, by name, in their written form.

    Raises:
        ConfigError: begins with the option.
    """
    num_inner = int(str(settings["zo_inner"]))
    if not 2 <= num_inner <= MOST_INNER:
        what = f"--zo-inner {num_inner}: give 2 to {MOST_INNER}"
    elif settings["zo_lower_learning_rate"] == 0:
        what = "--zo-lower-learning-rate 0: give another, so that the lower part is perturbed"
    elif settings["zo_normalise"]:
        what = "--zo-normalise, whose scalars have the loss's curvature in them: leave one of them out"
    else:
        return
    msg = f"--zo-move-cut goes by what the scalars say of either part, which they do not with {what}"
    raise ConfigError(msg)


def measured(log: Log) -> list[LowerShare]:
    """Return the shares that are estimated from enough scalars, the oldest first."""
    return [found for found in log.lower_shares() if found.num_draws >= SHARE_DRAWS]


def next_cut(log: Log, stack: Stack, first: int) -> int:
    """Cut of the next round after a log.

    Args:
        log: log of the earlier rounds.
        stack: shares of the model.
        first: cut of the first round, one of the stack's cuts.
    """
    last = log.entries[-1].logged if log.entries else None
    if last is None or last.cut not in stack.cuts:
        return first
    here = log.lower_share
    if here is None or here.num_draws < SHARE_DRAWS:
        return last.cut
    rate = last.lower_learning_rate / last.learning_rate
    shares = stack.shares_below(log)
    gains = {cut: stack.progress(cut, shares[cut], rate, last.num_inner) for cut in stack.cuts}
    known = {found.last.cut for found in measured(log)}
    margins = {cut: KNOWN_MARGIN if cut in known else MARGIN for cut in stack.cuts} | {last.cut: 1.0}
    best = max(gains, key=lambda cut: gains[cut] / margins[cut])
    most = max(1, len(stack.elements) // MOST_MOVED)
    return last.cut + max(-most, min(most, best - last.cut))


def _costs(manifest: Manifest) -> list[int]:
    """Number of products with frozen matrices per token in a forward pass: for every block, and for the head.

    Attention scores and LoRA factors are left out, because every block has the same. In a last block that outputs first
    tokens alone, keys and values are computed for every token.
    """
    costs = [0] * (manifest.num_layers + 1)
    for spec in manifest.tensors:
        is_short = manifest.scores_first_only and spec.layer == manifest.num_layers - 1
        if spec.layer is not None and len(spec.shape) == 2 and (not is_short or _is_of_keys_or_values(spec)):
            costs[spec.layer] += spec.shape[0] * spec.shape[1]
    if manifest.task == "causal-lm":
        costs[-1] = manifest.text.vocab_size * manifest.hidden_size
    return costs


def _is_of_keys_or_values(spec: TensorSpec) -> bool:
    """Return whether a matrix projects to keys or values, by its name."""
    return spec.name.removesuffix(".weight").rpartition(".")[2][0] in "kv"
