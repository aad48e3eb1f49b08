from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from edge_runtime.agent.outbox import MAX_ENTRIES, Outbox
from edge_runtime.agent.repeat import Repeat
from edge_runtime.agent.uploads import Uploads
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import AnyMessage, Chunk, ChunkRequest, Update
from tests.replies import blob_of

MakeUpdate = Callable[..., Update]


class Latest(random.Random):
    """No jitter: the latest time that is allowed."""

    def uniform(self, _a: float, b: float) -> float:
        return b


class Desk:
    """Uploads with a clock to turn and a list of what was said."""

    def __init__(self, directory: Path) -> None:
        self.now = 0.0
        self.said: list[Update] = []
        self.sent: list[AnyMessage] = []
        self.transfers = Transfers(lambda _, message: self.sent.append(message), lambda: self.now)
        self.uploads = Uploads(
            Outbox(directory), self.transfers, self.said.append, lambda: Repeat(Latest(), lambda: self.now)
        )

    def said_until(self, end: float) -> list[float]:
        times = []
        while self.now < end:
            before = len(self.said)
            self.uploads.tick()
            if len(self.said) > before:
                times.append(self.now)
            self.now += 1
        return times


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_an_update_is_announced_ever_later_until_answered(desk: Desk, make_update: MakeUpdate) -> None:
    update = make_update(b"adapter")
    desk.uploads.add(update, b"adapter")
    assert desk.said_until(200) == [0, 5, 15, 35, 75, 135, 195]
    assert desk.uploads.close(update.key) == update
    assert desk.said_until(400) == []


def test_a_repeated_assignment_is_answered_at_once(desk: Desk, make_update: MakeUpdate) -> None:
    update = make_update(b"adapter")
    desk.uploads.add(update, b"adapter")
    desk.said_until(20)
    assert desk.uploads.has(update.key)
    assert desk.said_until(21) == [20]
    assert not desk.uploads.has(structs.replace(update.key, round_number=2))


def test_an_update_waits_while_it_is_pulled(desk: Desk, make_update: MakeUpdate) -> None:
    update = make_update(b"adapter")
    desk.uploads.add(update, b"adapter")
    desk.said_until(4)
    desk.uploads.heard(blob_of(update).digest)
    assert desk.said_until(9) == []
    assert desk.said_until(10) == [9]


def test_the_adapter_is_offered_until_the_verdict(desk: Desk, make_update: MakeUpdate) -> None:
    blob = bytes(1024) + b"second chunk"
    update = make_update(blob)
    desk.uploads.add(update, blob)
    request = ChunkRequest(digest=blob_of(update).digest, missing=(1,))
    desk.transfers.handle("coordinator", request)
    assert desk.sent == [Chunk(digest=blob_of(update).digest, index=1, payload=b"second chunk")]
    desk.uploads.close(update.key)
    desk.transfers.handle("coordinator", request)
    assert len(desk.sent) == 1


def test_an_update_that_holds_its_bytes_is_announced_until_answered(tmp_path: Path, make_update: MakeUpdate) -> None:
    """By a later process too; nobody can pull it."""
    update = make_update(b"scalars", is_inline=True)
    Desk(tmp_path).uploads.add(update, b"scalars")
    desk = Desk(tmp_path)
    desk.uploads.open("run")
    assert desk.said_until(20) == [0, 5, 15]
    assert desk.said == [update] * 3
    digest = chunks.describe(b"scalars").digest
    desk.uploads.heard(digest)
    desk.transfers.handle("coordinator", ChunkRequest(digest=digest, missing=(0,)))
    assert desk.sent == []
    assert desk.uploads.close(update.key) == update
    assert desk.said_until(100) == []


def test_after_a_restart_only_updates_of_the_run_are_announced(tmp_path: Path, make_update: MakeUpdate) -> None:
    before = Desk(tmp_path)
    mine, old = make_update(b"mine"), make_update(b"old", run_id="yesterday")
    before.uploads.add(old, b"old")
    before.uploads.add(mine, b"mine")
    after = Desk(tmp_path)
    assert after.said_until(3) == []
    after.uploads.open("run")
    after.uploads.tick()
    assert after.said == [mine]
    assert after.uploads.pending == mine
    assert Outbox(tmp_path).updates() == [old, mine], "nobody has answered the other"


def test_a_welcome_of_another_run_keeps_what_this_one_has_not_answered(desk: Desk, make_update: MakeUpdate) -> None:
    mine, other = make_update(b"mine"), make_update(b"other", run_id="other")
    desk.uploads.open("run")
    desk.uploads.add(mine, b"mine")
    desk.uploads.open("other")
    desk.uploads.add(other, b"other")
    desk.uploads.tick()
    assert desk.said == [other], "the other run is not told of it"
    desk.transfers.handle("coordinator", ChunkRequest(digest=blob_of(mine).digest, missing=(0,)))
    assert desk.sent == [], "nor can it have it"
    desk.uploads.open("run")
    desk.uploads.tick()
    desk.transfers.handle("coordinator", ChunkRequest(digest=blob_of(mine).digest, missing=(0,)))
    assert desk.said[-1] == mine
    assert [m.payload for m in desk.sent if isinstance(m, Chunk)] == [b"mine"]


def test_the_same_adapter_is_offered_under_the_run_that_is_open(desk: Desk, make_update: MakeUpdate) -> None:
    mine, other = make_update(b"same"), make_update(b"same", run_id="other")
    desk.uploads.open("run")
    desk.uploads.add(mine, b"same")
    desk.uploads.open("other")
    desk.uploads.add(other, b"same")
    desk.uploads.open("other")
    desk.transfers.handle("coordinator", ChunkRequest(digest=blob_of(other).digest, missing=(0,)))
    assert [m.payload for m in desk.sent if isinstance(m, Chunk)] == [b"same"]


def test_after_a_reconnect_everything_is_announced_at_once(desk: Desk, make_update: MakeUpdate) -> None:
    desk.uploads.add(make_update(b"1", 1), b"1")
    desk.uploads.add(make_update(b"2", 2), b"2")
    desk.said_until(2)
    desk.uploads.restart()
    desk.uploads.tick()
    assert [u.key.round_number for u in desk.said] == [1, 2, 1, 2]


@pytest.mark.parametrize("answered", [0, 1])
def test_two_updates_with_the_same_adapter_do_not_withdraw_each_other(
    desk: Desk, make_update: MakeUpdate, answered: int
) -> None:
    first, second = make_update(b"same", 1), make_update(b"same", 2)
    desk.uploads.add(first, b"same")
    desk.uploads.add(second, b"same")
    desk.uploads.close((first, second)[answered].key)
    desk.transfers.handle("coordinator", ChunkRequest(digest=blob_of(second).digest, missing=(0,)))
    assert [m.payload for m in desk.sent if isinstance(m, Chunk)] == [b"same"]


def test_an_update_that_made_room_is_offered_no_more(desk: Desk, make_update: MakeUpdate) -> None:
    updates = [make_update(bytes([number]), number) for number in range(1, MAX_ENTRIES + 2)]
    for number, update in enumerate(updates, start=1):
        desk.uploads.add(update, bytes([number]))
    for update in updates:
        desk.transfers.handle("coordinator", ChunkRequest(digest=blob_of(update).digest, missing=(0,)))
    assert [m.payload for m in desk.sent if isinstance(m, Chunk)] == [bytes([n]) for n in range(2, MAX_ENTRIES + 2)]
    assert blob_of(updates[0]).digest not in desk.transfers._offers
