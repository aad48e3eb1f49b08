"""The start of a round's preconditioner H: first at 1, and anew before the log drops its rounds."""

from __future__ import annotations

from typing import Final

from broker_server.methods.zero_order.log import MAX_BYTES, Log
from edge_runtime.bounds.limits import MAX_FACTOR
from edge_runtime.wire.logged_rounds import PreconditionerStart
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.preconditioner import Preconditioner

MAX_ROUNDS: Final = 16
"""Rounds from one start to the next; every device replays them for H before its own steps."""


def start_of(log: Log, parts: TunedParts, seed: int, round_number: int) -> PreconditionerStart:
    """Return the start of H in a round.

    Args:
        log: log of the earlier rounds.
        parts: the tuned tensors of the round.
        seed: seed of the noise.
        round_number: number of the round.

    Returns:
        The start of the last logged round, if the log has all rounds since and they are few. Else a new start: the mean
        of H in each part, or 1 if it is unknown.

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
