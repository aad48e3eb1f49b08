"""Limits on what one client may send, cause to be written and be sent: memory, disk and log stay bounded."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from broker_server.config import CoordinatorConfig
from broker_server.errors import ConfigError
from broker_server.serving.coordinator.buckets import Allowance, Bucket
from broker_server.serving.coordinator.device_channel import HELLOS, MAX_REGISTRATION_BYTES, Other
from broker_server.serving.coordinator.registry import MESSAGES, Registry
from broker_server.serving.coordinator.sightings import FOR_PROGRESS, MAX_DETAIL, OF_ALL, OF_ONE, Sightings
from broker_server.serving.storage.events import DeviceSeen, EventLog, EventReader
from broker_server.serving.storage.store import Store
from edge_runtime.errors import MessageError
from edge_runtime.link.complaints import MAX_LINES, Complaints
from edge_runtime.wire import topics
from edge_runtime.wire.messages import (
    Chunk,
    Verdict,
    Welcome,
    decode_message,
    encode_message,
)
from tests.broker_server import fleet
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import FLEET, Device
from tests.broker_server.links import InProcess
from tests.broker_server.serving.coordinator.channel import QuietChannel, register, status
from tests.edge_runtime.wire import test_messages

Coordinate = Callable[[Path], Coordination]


# ---- messages --------------------------------------------------------------------------------------------------------


def test_messages_beyond_the_rate_are_not_read_and_do_not_cost_other_devices_theirs(
    quiet: QuietChannel, caplog: pytest.LogCaptureFixture
) -> None:
    read = sum(quiet.open("a", status()) is not None for _ in range(5000))
    assert read == MESSAGES.burst
    assert quiet.open("b", status("b")) is not None
    assert len([r for r in caplog.records if "messages a second" in r.message]) == 1
    quiet.now += 1
    assert sum(quiet.open("a", status()) is not None for _ in range(100)) == MESSAGES.per_s


def test_devices_that_never_registered_leave_nothing_behind(quiet: QuietChannel) -> None:
    """They are told to register, all of them together so often; what they announce is not read."""
    answers = [quiet.open(f"stranger-{i}", status(f"stranger-{i}")) for i in range(3000)]
    told = [answer for answer in answers if answer is not None]
    assert len(told) == HELLOS.burst
    assert told[0] == ("stranger-0", Other.STRANGER)
    assert not quiet.channel.registry.knows("stranger-0")
    assert quiet.open("a", status()) is not None


@pytest.mark.parametrize("num_bytes", [MAX_REGISTRATION_BYTES, 80_000])
def test_registration_that_is_too_large_is_refused(
    quiet: QuietChannel, num_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics.up(FLEET, "big", "register")
    for _ in range(50):
        assert quiet.channel.open(topic, b"\0" * (num_bytes + 1)) is None
    (line,) = [r.message for r in caplog.records]
    assert f"{num_bytes + 1} bytes is not read" in line
    assert "big" in line


def test_registration_of_an_ordinary_device_is_far_below_the_bound() -> None:
    versions = {f"package-{i}": "1.2.3.post4" for i in range(20)}
    assert len(encode_message(register(versions=versions))) < MAX_REGISTRATION_BYTES / 4


def test_message_on_a_topic_of_another_kind_is_refused(quiet: QuietChannel) -> None:
    """Otherwise what is counted as a chunk could be anything."""
    assert quiet.channel.open(topics.up(FLEET, "a", "chunk"), encode_message(status())) is None
    assert quiet.channel.num_refused == 1


# ---- registrations ---------------------------------------------------------------------------------------------------


def test_new_device_takes_the_place_of_that_which_is_offline_longest() -> None:
    registry = Registry(silence_s=45.0, max_devices=3)
    for i, device_id in enumerate("abc"):
        assert registry.register(device_id, "s", float(i))
    assert not registry.register("d", "s", 3.0)
    assert registry.leave("b", "s")
    assert registry.leave("a", "s")
    assert registry.register("d", "s", 4.0)
    assert not registry.knows("a")
    assert registry.knows("b")
    assert registry.register("a", "s", 5.0)
    assert not registry.register("e", "s", 5.0)
    assert registry.register("a", "again", 6.0)
    assert registry.take_silent(50.0) == ["c", "d"]
    assert registry.register("e", "s", 51.0)


def test_devices_on_disk_are_bounded(tmp_path: Path) -> None:
    with contextlib.closing(Store.open(tmp_path)) as store:
        for i in range(30):
            store.save_device(register(f"d{i:02}"), float(i))
        store.save_device(register("d00"), 99.0)
        store.trim_devices(10)
    connection = sqlite3.connect(tmp_path / "state.sqlite")
    with contextlib.closing(connection):
        left = [row[0] for row in connection.execute("SELECT device_id FROM devices ORDER BY device_id")]
    assert left == ["d00", *(f"d{i}" for i in range(21, 30))]


def test_fleet_larger_than_its_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_devices lets no more than 10"):
        fleet.config(tmp_path / "small", "mqtt://127.0.0.1:1", num_devices=11, max_devices=10)
    text = fleet.config(tmp_path / "large", "mqtt://127.0.0.1:1", max_devices=7).to_toml()
    assert CoordinatorConfig.from_toml(text).max_devices == 7


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with contextlib.closing(EventLog(tmp_path / "events.jsonl")) as one:
        yield one


def seen(device_id: str = "a", step: int = 0, detail: str = "") -> DeviceSeen:
    return DeviceSeen(
        at=1.0, device_id=device_id, state="training", round_number=1, step=step, num_steps=9, detail=detail
    )


def test_state_that_did_not_change_is_written_once(log: EventLog, tmp_path: Path) -> None:
    sightings = Sightings(log, lambda: 0.0, max_devices=10)
    for _ in range(20):
        sightings.see(seen())
    sightings.see(seen(step=1))
    assert len(list(EventReader(tmp_path / "events.jsonl").new_events())) == 2


def test_flood_of_changes_is_bounded_for_one_device_and_for_all(log: EventLog, tmp_path: Path) -> None:
    sightings = Sightings(log, lambda: 0.0, max_devices=10_000)
    for step in range(20_000):
        sightings.see(seen(step=step, detail="x" * 2000))
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert len(lines) == OF_ONE.burst * FOR_PROGRESS
    assert max(map(len, lines)) < MAX_DETAIL + 200
    for number in range(10_000):
        sightings.see(seen(f"d{number}"))
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == OF_ALL.burst


def test_progress_of_a_large_fleet_leaves_room_for_devices_that_leave(log: EventLog, tmp_path: Path) -> None:
    """A hundred devices that train and say so every second, for ten minutes: then one goes offline."""
    now = 0.0
    sightings = Sightings(log, lambda: now, max_devices=1000)
    for second in range(600):
        now = float(second)
        for number in range(100):
            sightings.see(seen(f"d{number}", step=second))
    sightings.see(msgspec.structs.replace(seen("d7"), state="offline", detail="went offline"))
    last = list(EventReader(tmp_path / "events.jsonl").new_events())[-1]
    assert isinstance(last, DeviceSeen)
    assert (last.device_id, last.state) == ("d7", "offline")


def test_one_line_a_device_and_interval(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("test"), interval_s=60.0)
    for second in range(61):
        complaints.say("device a", float(second), "y" * 9000)
    complaints.say("device b", 61.0, "other")
    first, second_line, other = (record.message for record in caplog.records)
    assert first.startswith("device a: yyy")
    assert "59 more like it" in second_line
    assert max(map(len, (first, second_line))) < 600
    assert other == "device b: other"


def test_lines_about_ever_new_devices_are_bounded_too(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("test"), interval_s=60.0)
    for number in range(5000):
        complaints.say(f"device g{number}", number / 100, "too large")
    assert len(caplog.records) == MAX_LINES
    complaints.say("device a", 60.0, "too large")
    assert len(caplog.records) == MAX_LINES + 1


def test_bucket_fills_again_and_never_beyond_its_burst() -> None:
    bucket, allowance = Bucket(), Allowance(burst=3, per_s=0.5)
    assert [bucket.take(allowance, 0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(allowance, 2.0) for _ in range(2)] == [True, False]
    assert [bucket.take(allowance, 1e6) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(allowance, 2e6, amount=4)


# ---- a whole coordinator ---------------------------------------------------------------------------------------------


def test_honest_device_is_served_beside_one_that_floods(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    fleet.config(tmp_path, broker.url, num_devices=1)
    running = coordinate(tmp_path)
    with Device(broker.url, "flood", lambda _a, _b: None) as flood:
        for step in range(1500):
            flood.say(status("flood", detail="\0" * 100, step=step))
            flood.say(status(f"stranger-{step}"), topic_of=f"stranger-{step}")
            flood.say(Chunk(digest="0" * 64, index=step, payload=b"x"))
            big = {f"p{i}": "x" * 200 for i in range(60)}
            flood.shout(topics.up(FLEET, f"g{step}", "register"), encode_message(register(f"g{step}", big)))
        flood.leave()
        with Device(broker.url, "honest") as honest:
            running.finish()
    assert [(m.key.round_number, m.accepted) for m in honest.heard(Verdict) if isinstance(m, Verdict)][-1] == (2, True)
    assert honest.heard(Welcome)
    assert (tmp_path / "events.jsonl").stat().st_size < 100_000
    with contextlib.closing(sqlite3.connect(tmp_path / "state.sqlite")) as connection:
        assert {row[0] for row in connection.execute("SELECT device_id FROM devices")} <= {"flood", "honest"}


OLD = json.loads(Path(test_messages.__file__).with_name("messages_of_version_1.json").read_text())


@pytest.mark.parametrize("kind", ["register", "update", "failure", "status"])
def test_a_device_of_the_release_before_is_told_which_side_to_upgrade(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = QuietChannel()
    if kind != "register":
        quiet.register("board-7")
    for _ in range(5):
        assert quiet.channel.open(topics.up(FLEET, "board-7", kind), bytes.fromhex(OLD[kind])) is None
    quiet.channel.post()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "board-7" in lines[0]
    assert (
        "schema_version 1, but this release of fedspine speaks 2: upgrade fedspine on the side that sent it" in lines[0]
    )
    assert {topic for topic, _ in quiet.link.words} == {topics.down(FLEET, "board-7", "refused")}
    with pytest.raises(MessageError, match="speaks schema_version 2, this device 1: upgrade fedspine on this device"):
        decode_message(quiet.link.words[0][1])


def test_words_to_devices_of_another_release_are_as_few_as_hellos() -> None:
    quiet = QuietChannel()
    for number in range(2 * int(HELLOS.burst)):
        quiet.channel.open(topics.up(FLEET, f"board-{number}", "register"), bytes.fromhex(OLD["register"]))
    quiet.channel.post()
    assert len(quiet.link.words) == HELLOS.burst
