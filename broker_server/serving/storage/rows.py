"""Rows of the tables: conversion between rows and the objects of a run."""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from broker_server.methods.rounds.types import Outcome, Participant
from broker_server.serving.storage import schema
from edge_runtime.wire.messages import AssignmentKey, FailureReason
from edge_runtime.wire.work import Arm

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=enum.StrEnum)


def _replacing(table: sa.Table, *, but: str = "") -> sa.Insert:
    """Inserts rows of a table, or replaces those of the same keys, ``but`` for a column that stays as it was."""
    statement = insert(table)
    changed = [c.name for c in table.columns if not c.primary_key and c.name != but]
    return statement.on_conflict_do_update(set_={name: statement.excluded[name] for name in changed})


# Made once: to make a statement takes longer than to execute it.
SAVE_DEVICE: Final = _replacing(schema.devices, but="first_seen_at")
SAVE_WORK: Final = _replacing(schema.works)
SAVE_UPDATE: Final = _replacing(schema.updates)
_SAVE_ASSIGNMENT: Final = _replacing(schema.assignments)
_SAVE_SCHEDULER: Final = _replacing(schema.scheduler)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerState:
    """State of a scheduler, written together with the records that it learnt from."""

    scheduler: str
    state: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """A round that had begun and has no record yet."""

    round_number: int
    active_s: float
    """Time that coordinators have spent in it."""
    participants: dict[str, Participant]
    """By device id, the last attempt of each."""


def of_round(table: sa.Table, query: sa.Select[Any], round_number: int | None) -> sa.Select[Any]:
    """A query of a table's rows for those of a round; None = of all rounds."""
    return query if round_number is None else query.where(table.c.round_number == round_number)


def save_participants(connection: sa.Connection, round_number: int, participants: Iterable[Participant]) -> None:
    """Write the state of a round's assignments."""
    rows = [_row(round_number, participant) for participant in participants]
    if rows:
        connection.execute(_SAVE_ASSIGNMENT, rows)


def save_scheduler(connection: sa.Connection, scheduler_state: SchedulerState | None) -> None:
    """Write a scheduler's state (None: it did not change)."""
    if scheduler_state is None:
        return
    row = {"name": scheduler_state.scheduler, "state": msgspec.json.encode(scheduler_state.state).decode()}
    connection.execute(_SAVE_SCHEDULER, row)


def participant_of(row: sa.Row[Any]) -> Participant:
    """The participant in a row; with an unknown outcome its assignment is open."""
    outcome, reason = _member(Outcome, row.outcome), _member(FailureReason, row.reason)
    if outcome is None and row.outcome is not None:
        where = (row.round_number, row.device_id)
        logger.warning("round %d: device %s has the unknown outcome %r: it is asked again", *where, row.outcome)
    return Participant(
        device_id=row.device_id,
        attempt=row.attempt,
        arm=msgspec.json.decode(row.arm, type=Arm),
        outcome=outcome,
        reason=reason,
        detail=row.detail,
    )


def _member(kind: type[E], value: str | None) -> E | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        return None


def _row(round_number: int, participant: Participant) -> dict[str, Any]:
    outcome = Outcome.FAILED if participant.awaits_arm else participant.outcome
    return {
        "round_number": round_number,
        "device_id": participant.device_id,
        "attempt": participant.attempt,
        "arm": msgspec.json.encode(participant.arm).decode(),
        "outcome": None if outcome is None else outcome.value,
        "reason": None if participant.reason is None else participant.reason.value,
        "detail": participant.detail,
    }


def key_columns(key: AssignmentKey) -> dict[str, Any]:
    """Return the columns that a key is kept in; a store is of one run."""
    return {"round_number": key.round_number, "device_id": key.device_id, "attempt": key.attempt}


def key_of(run_id: str, round_number: int, row: sa.Row[Any]) -> AssignmentKey:
    """Return the key of a row of a round."""
    return AssignmentKey(run_id=run_id, round_number=round_number, device_id=row.device_id, attempt=row.attempt)
