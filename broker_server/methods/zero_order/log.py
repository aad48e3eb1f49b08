"""The log of the last rounds, by which a device brings itself up to date; it is in the memory of the model.

The log is bounded. A device that was away for longer than the log reaches pulls the model, because the model of each
round is a checkpoint. So the server keeps nothing for devices that are away.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from broker_server.errors import AggregationError
from broker_server.methods.zero_order.combine import MEDIAN_ROUNDS, largest_scalar
from edge_runtime.bounds.limits import MAX_MESSAGE_BYTES
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.zero_order.estimator import gradient_energies
from edge_runtime.zero_order.replay import scalars_of

Array = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]

NAME: Final = "zero_order.log"
"""In the memory of the model."""
MAX_ROUNDS: Final = 64
"""Rounds that are kept."""
MAX_BYTES: Final = MAX_MESSAGE_BYTES // 2
"""Of the rounds that are kept, as they are sent: they are a part of one message."""

SHARE_DRAWS: Final = 64
"""Outer perturbations after which a share's standard deviation is about 0.1."""

_encode = msgspec.msgpack.Encoder().encode


class LowerShare(NamedTuple):
    """Of the gradient's squared norm, what is in the lower part."""

    last: LoggedRound
    """Of the rounds that it is estimated from."""
    share: float
    """0 to 1."""
    num_draws: int
    """Outer perturbations that it is estimated from."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A round, and what the server alone needs of it."""

    logged: LoggedRound
    magnitude: float
    """Median of the magnitudes of the devices' scalars."""


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """Rounds by ascending number. A round without a usable update changed nothing, and has no entry."""

    complete_from: int = 1
    """All rounds from this one on that changed the model by scalars are here."""
    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, memory: Mapping[str, Octets]) -> Self | None:
        """The log in the memory of a model; None if zero-order tuning has not begun.

        Raises:
            AggregationError: it is damaged.
        """
        if NAME not in memory:
            return None
        try:
            return msgspec.msgpack.decode(memory[NAME].tobytes(), type=cls)
        except msgspec.DecodeError as error:
            msg = f"the log of zero-order rounds is damaged ({error}): put the round's adapter back from a copy"
            raise AggregationError(msg) from error

    def in_memory(self) -> dict[str, Octets]:
        """As it is kept."""
        return {NAME: np.frombuffer(_encode(self), np.uint8)}

    def after(self, logged: LoggedRound, magnitude: float) -> Log:
        """With another round; the oldest go where it would be beyond its bounds."""
        entries = (*self.entries, Entry(logged=logged, magnitude=magnitude))
        sizes = [len(_encode(entry.logged)) for entry in entries]
        first = max(0, len(entries) - MAX_ROUNDS)
        while sum(sizes[first:]) > MAX_BYTES:
            first += 1
        left_out = entries[first - 1].logged.round_number if first else 0
        return Log(complete_from=max(self.complete_from, left_out + 1), entries=entries[first:])

    def cut_off(self, round_number: int) -> Log:
        """After a round that changed the model by more than its scalars: nobody catches up across it by the log.

        Entries stay for the bound of scalars.
        """
        return Log(complete_from=round_number + 1, entries=self.entries)

    def since(self, round_number: int | None, start: PreconditionerStart | None = None) -> tuple[LoggedRound, ...]:
        """For a device that has the model of the beginning of a round, or of a later round.

        Args:
            round_number: of the round; None = it is not known what the device has.
            start: where the preconditioner of the device's next round began; None = it has none.

        Returns:
            Rounds from that one on, and those before it that their preconditioners and the next round's follow from.
            Without the former where they are not all there.
        """
        rounds = [entry.logged for entry in self.entries]
        first = self.complete_from if round_number is None else round_number
        begun = [one.preconditioner.round_number for one in rounds if one.round_number >= first and one.preconditioner]
        first = min([first, *begun])
        needed = [first] if first >= self.complete_from else []
        needed += [] if start is None else [start.round_number]
        return tuple(one for one in rounds if needed and one.round_number >= min(needed))

    @property
    def largest_scalar(self) -> float | None:
        """Return the bound to which scalars of the next round are clipped; None while nothing is known."""
        return largest_scalar([entry.magnitude for entry in self.entries])

    @property
    def lower_share(self) -> LowerShare | None:
        """The lower part's share of the gradient in the last rounds; see :meth:`lower_shares`."""
        found = self.lower_shares() if self.entries else []
        return found[-1] if found and found[-1].last is self.entries[-1].logged else None

    def lower_shares(self) -> list[LowerShare]:
        """The lower part's share of the gradient, one for each series of rounds that were alike, the oldest first.

        From the last rounds of each: no more than are needed for :data:`MEDIAN_ROUNDS` and :data:`SHARE_DRAWS`. None
        of rounds that do not tell the parts apart: one inner perturbation, none of the lower part, or differences from
        one side, whose curvature would count for the lower part.
        """
        series = itertools.groupby((entry.logged for entry in self.entries), _counts)
        return [share for _, rounds in series if (share := _share_of(list(rounds))) is not None]


def _counts(logged: LoggedRound) -> tuple[int, int, int, bool, bool]:
    is_lower_tuned = logged.lower_learning_rate > 0
    return logged.cut, logged.num_outer, logged.num_inner, logged.is_normalised, is_lower_tuned


def _share_of(rounds: list[LoggedRound]) -> LowerShare | None:
    """Of rounds that were alike."""
    last = rounds[-1]
    if last.num_inner < 2 or last.lower_learning_rate == 0 or last.is_normalised:
        return None
    scalars: list[Array] = []
    num_draws = 0
    for logged in reversed(rounds):
        if len(scalars) >= MEDIAN_ROUNDS and num_draws >= SHARE_DRAWS:
            break
        scalars.append(scalars_of(logged))
        num_draws += scalars[-1].size // logged.num_inner
    lower, upper = gradient_energies(np.concatenate(scalars))
    total = max(lower, 0.0) + upper
    return LowerShare(last=last, share=1 - upper / total, num_draws=num_draws) if total > 0 else None
