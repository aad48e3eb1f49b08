"""The registry and the checkpoints of a run: ``state.sqlite`` and the accepted updates beside it.

The state that a restarted coordinator needs is on disk before anything that depends on it leaves the process:

    assignments     row, and the plans that it asks for, then the message
    update          file (flushed to disk), row, then the verdict
    global adapter  file, then the round's record

So a crash between any two of these costs repeated work at most, never an accepted update. SQLite runs in WAL mode with
``synchronous = FULL``: a transaction that returned survives a power cut.

A disk takes milliseconds to make anything durable, one thing or many. After :meth:`Store.hold` writes gather, in one
transaction, until :meth:`Store.settle`: messages that depend on them may leave the process after that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from broker_server.errors import StoreError
from broker_server.methods.method import AssignedWork
from broker_server.methods.rounds.types import Outcome, Participant
from broker_server.serving.storage import rows, schema
from broker_server.serving.storage.held_files import HeldFiles, sweep
from broker_server.serving.storage.records import RoundRecord
from broker_server.serving.storage.rows import OpenRound, SchedulerState
from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.run_directory import STATE_FILE
from edge_runtime.system.files import DiskFullError
from edge_runtime.wire.messages import AssignmentKey, FailureReason, Register, Update, decode_message, encode_message

logger = logging.getLogger(__name__)

UPDATES_FOLDER = "updates"


class Store:
    """One run's state on disk. Not thread-safe. Make it with :meth:`open`."""

    def __init__(self, run_dir: Path, engine: sa.Engine) -> None:
        self._run_dir = run_dir
        self._engine = engine
        self._files = HeldFiles()
        self._is_holding = False
        self._group: sa.Connection | None = None
        """The transaction that writes gather in."""

    @classmethod
    def open(cls, run_dir: Path) -> Self:
        """Open, or create, the state of a run.

        Raises:
            StoreError: the file is damaged, is not such a database, or is of another version.
            DiskFullError: there is no space.
        """
        path = run_dir / STATE_FILE
        engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.StaticPool)
        sa.event.listen(engine, "connect", _set_up_connection)
        store = cls(run_dir, engine)
        try:
            with store._transaction() as connection:
                schema.metadata.create_all(connection)
                _check_version(connection, path)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the database; writes that were not settled are dropped."""
        self._files.close()
        if self._group is not None:
            self._group.close()
        self._engine.dispose()

    def hold(self) -> None:
        """From now on gather writes until :meth:`settle`, again and again. Reads see the gathered writes.

        Only one process may do so: it removes temporary files of one that was killed.
        """
        self._is_holding = True
        sweep(self._run_dir / UPDATES_FOLDER)

    def settle(self) -> None:
        """Make everything durable that was gathered: files first, then the rows that tell of them.

        Raises:
            DiskFullError: there is no space.
            StoreError: the database cannot be used.
        """
        self._files.settle()
        group, self._group = self._group, None
        if group is not None:
            with self._translated(), group:
                group.commit()

    def identify(self, identity: Mapping[str, str]) -> dict[str, str]:
        """Return the recorded identity of the run, by name, and record those values that are new."""
        table = schema.meta
        with self._transaction() as connection:
            found = connection.execute(sa.select(table.c.key, table.c.value).where(table.c.key.in_(list(identity))))
            before = {str(row.key): str(row.value) for row in found}
            new = [{"key": key, "value": value} for key, value in identity.items() if key not in before]
            if new:
                connection.execute(sa.insert(table), new)
        return before

    # ---- devices -----------------------------------------------------------------------------------------------------

    def save_device(self, register: Register, at: float) -> None:
        """Write a device's registration, ``at`` Unix seconds: for people, docs/server.md has the query."""
        row = {
            "device_id": register.device_id,
            "register": msgspec.json.encode(register).decode(),
            "first_seen_at": at,
            "last_seen_at": at,
        }
        with self._transaction() as connection:
            connection.execute(rows.SAVE_DEVICE, row)

    def trim_devices(self, most: int) -> None:
        """Remove registrations of devices, except the ``most`` latest ones."""
        table = schema.devices
        kept = sa.select(table.c.device_id).order_by(table.c.last_seen_at.desc()).limit(most)
        with self._transaction() as connection:
            connection.execute(sa.delete(table).where(table.c.device_id.not_in(kept)))

    def load_sessions(self) -> dict[str, str]:
        """The session that each device registered with last; without those whose row cannot be read."""
        sessions = {}
        for row in self._query(sa.select(schema.devices.c.device_id, schema.devices.c.register)):
            with contextlib.suppress(msgspec.DecodeError):
                sessions[row.device_id] = msgspec.json.decode(row.register, type=Register).session_id
        return sessions

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def begin_round(
        self, round_number: int, participants: Iterable[Participant], scheduler: SchedulerState | None, at: float
    ) -> None:
        """Write a round with its first assignments and its scheduler's state (None: unchanged), all or nothing."""
        row = {"round_number": round_number, "started_at": at, "active_s": 0.0}
        with self._transaction() as connection:
            connection.execute(insert(schema.rounds).values(row).on_conflict_do_nothing())
            rows.save_participants(connection, round_number, participants)
            rows.save_scheduler(connection, scheduler)

    def save_participants(
        self, round_number: int, participants: Iterable[Participant], scheduler: SchedulerState | None, active_s: float
    ) -> None:
        """Write the state of a round's assignments, and the scheduler's state (None: unchanged)."""
        with self._transaction() as connection:
            rows.save_participants(connection, round_number, participants)
            rows.save_scheduler(connection, scheduler)
            this = schema.rounds.c.round_number == round_number
            connection.execute(sa.update(schema.rounds).where(this).values(active_s=active_s))

    def finish_round(self, record: RoundRecord, scheduler: SchedulerState | None, at: float) -> None:
        """Write the record of a round; it is over with this."""
        row = {
            "round_number": record.round_number,
            "started_at": at,
            "active_s": record.seconds,
            "record": msgspec.json.encode(record).decode(),
        }
        changed = {"active_s": row["active_s"], "record": row["record"]}
        with self._transaction() as connection:
            connection.execute(insert(schema.rounds).values(row).on_conflict_do_update(set_=changed))
            rows.save_scheduler(connection, scheduler)

    def forget_round(self, round_number: int, *, keep_updates: bool) -> None:
        """Undo a round that has no record yet: it begins again, its updates forgotten or kept for it. Settles."""
        answers = () if keep_updates else (schema.updates, schema.works)
        with self._transaction() as connection:
            for table in (*answers, schema.assignments, schema.rounds):
                connection.execute(sa.delete(table).where(table.c.round_number == round_number))
        self.settle()

    def load_round_records(self) -> list[RoundRecord]:
        """Records of the finished rounds, in order.

        Raises:
            StoreError: a record is damaged.
        """
        query = sa.select(schema.rounds.c.record).where(schema.rounds.c.record.is_not(None)).order_by("round_number")
        try:
            return [msgspec.json.decode(row[0], type=RoundRecord) for row in self._query(query)]
        except msgspec.DecodeError as error:
            msg = f"{self._run_dir / STATE_FILE}: a round's record is damaged ({error})"
            raise StoreError(msg) from error

    def load_first_round_at(self) -> float | None:
        """Unix seconds when the first round was written; None before that."""
        (row,) = self._query(sa.select(sa.func.min(schema.rounds.c.started_at)))
        return None if row[0] is None else float(row[0])

    def load_open_round(self) -> OpenRound | None:
        """The round that a restarted coordinator goes on with; None between rounds.

        An update whose file has changed since it was accepted does not count: its assignment is open again.
        """
        rounds = schema.rounds
        found = self._query(sa.select(rounds.c.round_number, rounds.c.active_s).where(rounds.c.record.is_(None)))
        if not found:
            return None
        last = found[-1]
        round_number, active_s = int(last.round_number), float(last.active_s)
        table = schema.assignments
        found = self._query(sa.select(table).where(table.c.round_number == round_number).order_by(table.c.attempt))
        participants = {row.device_id: rows.participant_of(row) for row in found}
        accepted = {update.key.device_id: update.key.attempt for update in self.load_updates(round_number)}
        for device_id, participant in participants.items():
            is_accepted = accepted.get(device_id) == participant.attempt
            if is_accepted:
                participants[device_id] = dataclasses.replace(participant, outcome=Outcome.ACCEPTED, detail="")
            elif participant.outcome is Outcome.ACCEPTED:
                participants[device_id] = dataclasses.replace(participant, outcome=None)
        return OpenRound(round_number=round_number, active_s=active_s, participants=participants)

    # ---- assignments -------------------------------------------------------------------------------------------------

    def save_work(self, key: AssignmentKey, work: AssignedWork) -> None:
        """Write the work of an assignment, before it is sent."""
        row = {**rows.key_columns(key), "work": msgspec.msgpack.encode(work)}
        with self._transaction() as connection:
            connection.execute(rows.SAVE_WORK, row)

    def load_works(self, run_id: str, round_number: int | None = None) -> dict[AssignmentKey, AssignedWork]:
        """Return the work of the assignments of a round; None = of all rounds.

        Raises:
            StoreError: a row is damaged.
        """
        out = {}
        for row in self._query(rows.of_round(schema.works, sa.select(schema.works), round_number)):
            key = rows.key_of(run_id, row.round_number, row)
            try:
                out[key] = msgspec.msgpack.decode(row.work, type=AssignedWork)
            except msgspec.DecodeError as error:
                msg = f"{self._run_dir / STATE_FILE}: an assignment of round {key.round_number} is damaged ({error})"
                raise StoreError(msg, device_id=key.device_id, round_number=key.round_number) from error
        return out

    def load_refusers(self) -> set[str]:
        """Devices that refused an arm as infeasible, in any round."""
        table = schema.assignments
        refused = table.c.reason == FailureReason.ARM_INFEASIBLE.value
        return {str(row[0]) for row in self._query(sa.select(table.c.device_id).where(refused).distinct())}

    # ---- updates -----------------------------------------------------------------------------------------------------

    def accept_update(self, update: Update, blob: bytes, at: float) -> None:
        """Keep an update that was checked: file first, then the row.

        It survives a crash when this returns, or, after :meth:`hold`, when it is settled.

        Raises:
            DiskFullError: there is no space; the update is not accepted.
        """
        self._files.write(self.update_path(update.key), blob)
        if not self._is_holding:
            self._files.settle()
        row = {**rows.key_columns(update.key), "message": encode_message(update), "accepted_at": at}
        with self._transaction() as connection:
            connection.execute(rows.SAVE_UPDATE, row)

    def load_updates(self, round_number: int | None = None) -> list[Update]:
        """Accepted updates of a round whose files are intact, by device id; None = of all rounds, in order."""
        table = schema.updates
        query = rows.of_round(table, sa.select(table.c.message, table.c.round_number), round_number)
        out = []
        for row in self._query(query.order_by(table.c.round_number, table.c.device_id)):
            try:
                update = decode_message(row.message)
            except MessageError as error:
                logger.warning("an accepted update of round %d no longer counts (%s)", row.round_number, error)
                continue
            if isinstance(update, Update) and self.read_update(update) is not None:
                out.append(update)
            elif isinstance(update, Update):
                where = self.update_path(update.key)
                logger.warning("%s is missing or not what was accepted: its device is asked again", where)
        return out

    def load_accept_times(self, run_id: str, round_number: int) -> dict[AssignmentKey, float]:
        """Return the times when the updates of a round were accepted, Unix seconds."""
        table = schema.updates
        query = sa.select(table.c.device_id, table.c.attempt, table.c.accepted_at)
        return {
            rows.key_of(run_id, round_number, row): row.accepted_at
            for row in self._query(query.where(table.c.round_number == round_number))
        }

    def read_update(self, update: Update) -> bytes | None:
        """The adapter of an accepted update; None when the file is missing or is not the one that was accepted."""
        try:
            blob = self.update_path(update.key).read_bytes()
        except OSError:
            return None
        return blob if update.blob is not None and digest_of(blob) == update.blob.digest else None

    def is_accepted(self, key: AssignmentKey) -> bool:
        """Return whether an update was accepted, in any round."""
        table = schema.updates
        query = sa.select(table.c.attempt).where(
            table.c.round_number == key.round_number, table.c.device_id == key.device_id
        )
        return any(row[0] == key.attempt for row in self._query(query))

    def update_path(self, key: AssignmentKey) -> Path:
        """Return the path of an accepted update's adapter."""
        return self._run_dir / UPDATES_FOLDER / str(key.round_number) / f"{key.device_id}.safetensors"

    # ---- scheduler ---------------------------------------------------------------------------------------------------

    def load_scheduler(self, name: str) -> dict[str, Any] | None:
        """Return the state of the scheduler ``name``; None if it has not played in this run.

        Raises:
            StoreError: it is damaged.
        """
        found = self._query(sa.select(schema.scheduler.c.state).where(schema.scheduler.c.name == name))
        try:
            return msgspec.json.decode(found[0][0], type=dict[str, Any]) if found else None
        except msgspec.DecodeError as error:
            msg = f"{self._run_dir / STATE_FILE}: the scheduler's state is damaged ({error})"
            raise StoreError(msg) from error

    # ---- the database ------------------------------------------------------------------------------------------------

    def _query(self, statement: sa.Select[Any]) -> list[sa.Row[Any]]:
        with self._transaction() as connection:
            return list(connection.execute(statement))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._translated():
            if self._is_holding:
                if self._group is None:
                    self._group = self._engine.connect()
                yield self._group
            else:
                with self._engine.begin() as connection:
                    yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            path = self._run_dir / STATE_FILE
            if "disk is full" in str(error.orig):
                msg = f"disk full while writing {path}: free some space and resume the run"
                raise DiskFullError(msg) from error
            msg = f"{path} cannot be used ({error.orig}): {_cure(str(error.orig))}"
            raise StoreError(msg) from error


def _cure(fault: str) -> str:
    """Return the advice for a fault that SQLite reports."""
    if "locked" in fault:
        return "another program has it open; end that one, and start again"
    if "readonly" in fault or "unable to open" in fault:
        return "it must be a file that this user may write, in a directory that this user may write"
    return "put it back from a copy, or start a new run in another directory"


def _check_version(connection: sa.Connection, path: Path) -> None:
    """Write the version of a new database, or check that of an old one."""
    key = "schema_version"
    version = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar()
    if version is None:
        connection.execute(sa.insert(schema.meta).values(key=key, value=str(schema.SCHEMA_VERSION)))
    elif version != str(schema.SCHEMA_VERSION):
        msg = (
            f"{path} has schema version {version}, but this release reads {schema.SCHEMA_VERSION}: "
            "go on with the release that began the run, or start a new run"
        )
        raise StoreError(msg)


def _set_up_connection(connection: Any, _record: object) -> None:  # noqa: ANN401 - sqlite3's, by SQLAlchemy's event
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 5000")
    cursor.close()
