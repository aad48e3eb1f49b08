"""The start of a round's preconditioner: at 1, and anew before the log would lose its rounds."""

from __future__ import annotations

from typing import Final

from broker_server.methods.zero_order.log import MAX_BYTES, Log
from edge_runtime.bounds.limits import MAX_FACTOR
from edge_runtime.wire.logged_rounds import PreconditionerStart
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner

MAX_ROUNDS: Final = 16
"""Rounds from one beginning to the next: what every device does again, for H alone, before its own steps."""


def start_of(log: Log, parts: TunedParts, seed: int, round_number: int) -> PreconditionerStart:
    """Return the start of H in a round.

    Args:
        log: rounds before it.
        parts: what is tuned in it.
        seed: of the noise.
        round_number: of the round.

    Returns:
        That of the last round in the log, while all of its rounds are there and few. Else a new one: at the mean that H
        had in either part, at 1 if that is not known.

    Raises:
        TensorError: the log is damaged.
    """
    rounds = [entry.logged for entry in log.entries]
    last = rounds[-1].preconditioner if rounds else None
    if last is None or last.round_number < log.complete_from or rounds[-1].cut != parts.cut:
        return PreconditionerStart(round_number=round_number, lower=1.0, upper=1.0)
    since = [logged for logged in rounds if logged.preconditioner == last]
    if len(since) < MAX_ROUNDS and sum(len(logged.scalars) for logged in since) < MAX_BYTES // 2:
        return last
    reached = Preconditioner.after(parts, seed, since, last)
    return PreconditionerStart(
        round_number=round_number,
        lower=min(reached.mean("lower"), MAX_FACTOR),
        upper=min(reached.mean("upper"), MAX_FACTOR),
    )
