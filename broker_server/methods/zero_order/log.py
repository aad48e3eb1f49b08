"""The log of the last rounds, which devices replay to get the current model; it is stored in the model's memory.

The log is bounded. A device that was away for longer pulls the checkpoint of the model. So the server keeps nothing for
absent devices.
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
"""Name of the log in the memory of the model."""
MAX_ROUNDS: Final = 64
"""Most rounds in the log."""
MAX_BYTES: Final = MAX_MESSAGE_BYTES // 2
"""Largest encoded size of the rounds, because they are a part of one message."""

SHARE_DRAWS: Final = 64
"""Outer perturbations after which a share's standard deviation is about 0.1."""

_encode = msgspec.msgpack.Encoder().encode


class LowerShare(NamedTuple):
    """The lower part's share of the gradient's squared norm."""

    last: LoggedRound
    """Last of the rounds from which the share is estimated."""
    share: float
    """The share, 0 to 1."""
    num_draws: int
    """Number of outer perturbations from which the share is estimated."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A logged round, and a figure of it that only the server needs."""

    logged: LoggedRound
    magnitude: float
    """Median of the magnitudes of the devices' scalars."""


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """Rounds by ascending number. A round without a usable update changed nothing, and has no entry."""

    complete_from: int = 1
    """First round from which on the log holds all rounds that changed the model by scalars."""
    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, memory: Mapping[str, Octets]) -> Self | None:
        """The log in the memory of a model; None if zero-order tuning has not begun.

        Raises:
            AggregationError: the log is damaged.
        """
        if NAME not in memory:
            return None
        try:
            return msgspec.msgpack.decode(memory[NAME].tobytes(), type=cls)
        except msgspec.DecodeError as error:
            msg = f"the log of zero-order rounds is damaged ({error}): put the round's adapter back from a copy"
            raise AggregationError(msg) from error

    def in_memory(self) -> dict[str, Octets]:
        """The log encoded for the memory of the model."""
        return {NAME: np.frombuffer(_encode(self), np.uint8)}

    def after(self, logged: LoggedRound, magnitude: float) -> Log:
        """The log with another round; the oldest rounds are dropped to keep its bounds."""
        entries = (*self.entries, Entry(logged=logged, magnitude=magnitude))
        sizes = [len(_encode(entry.logged)) for entry in entries]
        first = max(0, len(entries) - MAX_ROUNDS)
        while sum(sizes[first:]) > MAX_BYTES:
            first += 1
        left_out = entries[first - 1].logged.round_number if first else 0
        return Log(complete_from=max(self.complete_from, left_out + 1), entries=entries[first:])

    def cut_off(self, round_number: int) -> Log:
        """The log after a round that changed the model by more than scalars; devices cannot replay across this round.

        Entries stay, because they give the bound of scalars.
        """
        return Log(complete_from=round_number + 1, entries=self.entries)

    def since(self, round_number: int | None, start: PreconditionerStart | None = None) -> tuple[LoggedRound, ...]:
        """Rounds to send to a device that has the model of the beginning of a round, or of a later round.

        Args:
            round_number: number of the round; None = unknown.
            start: start of the preconditioner of the device's next round; None = no preconditioner.

        Returns:
            Rounds from ``round_number`` on, and earlier rounds from which the preconditioners follow. If the log lacks
            some of the former, only the rounds for the next round's preconditioner.
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
        """Return the bound to which scalars of the next round are clipped; None without earlier rounds."""
        return largest_scalar([entry.magnitude for entry in self.entries])

    @property
    def lower_share(self) -> LowerShare | None:
        """The lower part's share of the gradient in the last rounds; see :meth:`lower_shares`."""
        found = self.lower_shares() if self.entries else []
        return found[-1] if found and found[-1].last is self.entries[-1].logged else None

    def lower_shares(self) -> list[LowerShare]:
        """The lower part's share of the gradient for each series of rounds with equal settings, the oldest first.

        Each is estimated from the last rounds of its series, as many as :data:`MEDIAN_ROUNDS` and :data:`SHARE_DRAWS`
        need. Rounds that do not separate the parts give no share: with one inner perturbation, without perturbations of
        the lower part, or with one-sided differences, whose curvature would count for the lower part.
        """
        series = itertools.groupby((entry.logged for entry in self.entries), _counts)
        return [share for _, rounds in series if (share := _share_of(list(rounds))) is not None]


def _counts(logged: LoggedRound) -> tuple[int, int, int, bool, bool]:
    is_lower_tuned = logged.lower_learning_rate > 0
    return logged.cut, logged.num_outer, logged.num_inner, logged.is_normalised, is_lower_tuned


def _share_of(rounds: list[LoggedRound]) -> LowerShare | None:
    """Estimate the share from rounds with equal settings."""
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
