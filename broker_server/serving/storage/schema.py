"""Tables of ``state.sqlite``. A change that another release could not work with is a new :data:`SCHEMA_VERSION`."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

SCHEMA_VERSION: Final = 3

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device_id", sa.Text, primary_key=True),
    sa.Column("register", sa.Text, nullable=False),  # JSON of its last Register message
    sa.Column("first_seen_at", sa.Float, nullable=False),
    sa.Column("last_seen_at", sa.Float, nullable=False),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("round_number", sa.Integer, primary_key=True),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("active_s", sa.Float, nullable=False),  # time that coordinators have spent in it so far
    sa.Column("record", sa.Text),  # JSON of a RoundRecord; null while the round is not finished
)

assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("round_number", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("arm", sa.Text, nullable=False),  # JSON of an Arm
    sa.Column("outcome", sa.Text),  # null while it is open
    sa.Column("reason", sa.Text),
    sa.Column("detail", sa.Text, nullable=False),
)

works = sa.Table(
    "works",
    metadata,
    sa.Column("round_number", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("work", sa.LargeBinary, nullable=False),  # msgpack of an AssignedWork: the plans that were sent
)

updates = sa.Table(
    "updates",
    metadata,
    sa.Column("round_number", sa.Integer, primary_key=True),
    sa.Column("device_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),  # msgpack of the Update message
    sa.Column("accepted_at", sa.Float, nullable=False),
)

scheduler = sa.Table(
    "scheduler",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),  # JSON
)
