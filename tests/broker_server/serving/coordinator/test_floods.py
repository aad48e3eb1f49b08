"""What one client may send, have written and have sent, whatever it does: memory, disk and log stay bounded."""

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
from broker_server.serving.coordinator.device_channel import HELLOS, MAX_REGISTRATION_BYTES, DeviceChannel, Other
from broker_server.serving.coordinator.registry import MESSAGES, Registry
from broker_server.serving.coordinator.sightings import FOR_PROGRESS, MAX_DETAIL, OF_ALL, OF_ONE, Sightings
from broker_server.serving.storage import events as stored_events
from broker_server.serving.storage.events import DeviceSeen, EventLog, EventReader
from broker_server.serving.storage.store import Store
from edge_runtime.errors import MessageError
from edge_runtime.link.complaints import MAX_LINES, Complaints
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.messages import (
    AnyMessage,
    Chunk,
    ChunkRequest,
    DeviceState,
    Register,
    Status,
    Verdict,
    Welcome,
    decode_message,
    encode_message,
    kind_of,
)
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import FLEET, Device
from tests.broker_server.links import InProcess
from tests.edge_runtime.wire import test_messages

Coordinate = Callable[[Path], Coordination]


class Link:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.published: list[AnyMessage] = []
        self.topics: list[str] = []
        self.words: list[tuple[str, bytes]] = []
        """To devices of other releases."""
        self.room = 1 << 30
        """Messages until it is full."""

    @property
    def has_room(self) -> bool:
        return len(self.published) < self.room

    def publish(self, topic: str, payload: bytes) -> None:
        assert topic.startswith("fedspine/")
        if topic.endswith("/refused"):
            self.words.append((topic, payload))
        else:
            self.published.append(decode_message(payload))
            self.topics.append(topic)


class Post:
    """A channel at a clock that stands still."""

    def __init__(self, max_devices: int = 100) -> None:
        self.now = 1000.0
        self.link = Link()
        self.channel = DeviceChannel(FLEET, self.link, lambda: self.now, max_devices=max_devices)  # type: ignore[arg-type]

    def register(self, device_id: str) -> bool:
        return self.channel.registry.register(device_id, "s", self.now)

    def open(self, device_id: str, message: AnyMessage) -> object:
        return self.channel.open(topics.up(FLEET, device_id, kind_of(message)), encode_message(message))


def status(device_id: str = "a", detail: str = "", step: int = 0) -> Status:
    return Status(device_id=device_id, session_id="s", state=DeviceState.TRAINING, step=step, detail=detail)


def register(device_id: str = "a", versions: dict[str, str] | None = None) -> Register:
    capabilities = msgspec.structs.replace(tiny.capabilities(), versions=versions or {})
    return Register(device_id=device_id, session_id="s", capabilities=capabilities, num_examples=1)


@pytest.fixture
def post() -> Post:
    one = Post()
    one.register("a")
    one.register("b")
    return one


# ---- messages --------------------------------------------------------------------------------------------------------


def test_messages_beyond_the_rate_are_not_read_and_do_not_cost_other_devices_theirs(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    read = sum(post.open("a", status()) is not None for _ in range(5000))
    assert read == MESSAGES.burst
    assert post.open("b", status("b")) is not None
    assert len([r for r in caplog.records if "messages a second" in r.message]) == 1
    post.now += 1
    assert sum(post.open("a", status()) is not None for _ in range(100)) == MESSAGES.per_s


def test_devices_that_never_registered_leave_nothing_behind(post: Post) -> None:
    """They are told to register, all of them together so often; what they announce is not read."""
    answers = [post.open(f"stranger-{i}", status(f"stranger-{i}")) for i in range(3000)]
    told = [answer for answer in answers if answer is not None]
    assert len(told) == HELLOS.burst
    assert told[0] == ("stranger-0", Other.STRANGER)
    assert not post.channel.registry.knows("stranger-0")
    assert post.open("a", status()) is not None


@pytest.mark.parametrize("num_bytes", [MAX_REGISTRATION_BYTES, 80_000])
def test_registration_that_is_too_large_is_refused(
    post: Post, num_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics.up(FLEET, "big", "register")
    for _ in range(50):
        assert post.channel.open(topic, b"\0" * (num_bytes + 1)) is None
    (line,) = [r.message for r in caplog.records]
    assert f"{num_bytes + 1} bytes is not read" in line
    assert "big" in line


def test_registration_of_an_ordinary_device_is_far_below_the_bound() -> None:
    versions = {f"package-{i}": "1.2.3.post4" for i in range(20)}
    assert len(encode_message(register(versions=versions))) < MAX_REGISTRATION_BYTES / 4


def test_message_on_a_topic_of_another_kind_is_refused(post: Post) -> None:
    """Otherwise what is counted as a chunk could be anything."""
    assert post.channel.open(topics.up(FLEET, "a", "chunk"), encode_message(status())) is None
    assert post.channel.num_refused == 1


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


# ---- chunks ----------------------------------------------------------------------------------------------------------


def test_one_request_is_answered_with_each_chunk_once(post: Post) -> None:
    blob = b"x" * 3000
    ref = chunks.describe(blob, 1024)
    post.channel.offer(ref, blob)
    post.open("a", ChunkRequest(digest=ref.digest, missing=(0,) * 16))
    assert len(post.link.published) == 1


def test_blob_is_sent_to_a_device_only_so_often_in_a_time(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    blob = b"x" * (100 * 1024)
    ref = chunks.describe(blob, 1024)
    post.channel.offer(ref, blob)
    for _ in range(3000):
        post.open("a", ChunkRequest(digest=ref.digest, missing=(0, 1)))
    assert 4 * 100 <= len(post.link.published) <= 4 * 100 + 16
    assert len(caplog.records) == 1
    post.link.published.clear()
    for first in range(0, 100, 10):
        post.open("b", ChunkRequest(digest=ref.digest, missing=tuple(range(first, first + 10))))
    assert len(post.link.published) == 100
    post.now += 60
    post.open("a", ChunkRequest(digest=ref.digest, missing=(5,)))
    assert len(post.link.published) == 101


def test_device_of_short_rounds_gets_the_adapter_of_each(post: Post) -> None:
    """Rounds of a second, each with an adapter of its own, which a device pulls once."""
    for number in range(50):
        blob = b"%03d" % number * 1000
        ref = chunks.describe(blob, 1024)
        post.channel.offer(ref, blob)
        post.link.published.clear()
        post.open("a", ChunkRequest(digest=ref.digest, missing=tuple(range(ref.num_chunks))))
        assert len(post.link.published) == ref.num_chunks, f"round {number}"
        post.channel.withdraw(ref.digest)
        post.now += 1


def test_devices_wait_their_turn_while_the_link_is_full(post: Post) -> None:
    """None of what they asked for is dropped, and who asks again neither loses its place nor gets a chunk twice."""
    blob = b"x" * 3000
    ref = chunks.describe(blob, 1024)
    post.channel.offer(ref, blob)
    post.link.room = 0
    for device_id, missing in (("a", (0, 1)), ("b", (2,)), ("a", (1, 2))):
        post.open(device_id, ChunkRequest(digest=ref.digest, missing=missing))
    assert post.link.published == []

    post.link.room = 1  # full again after the first device was served
    post.channel.tick()
    assert post.link.topics == [topics.down(FLEET, "a", "chunk")] * 3
    post.link.room = 4
    post.channel.post()
    assert post.link.topics[3:] == [topics.down(FLEET, "b", "chunk")]
    post.link.room = 100
    post.channel.tick()
    assert [chunk.index for chunk in post.link.published if isinstance(chunk, Chunk)] == [0, 1, 2, 2]


def test_nothing_of_a_blob_that_is_offered_no_more_is_sent(post: Post) -> None:
    old, new = b"x" * 1000, b"y" * 1000
    first, second = chunks.describe(old, 1024), chunks.describe(new, 1024)
    post.channel.offer(first, old)
    post.channel.offer(second, new)
    post.link.room = 0
    for ref in (first, second):
        post.open("a", ChunkRequest(digest=ref.digest, missing=(0,)))
    post.channel.withdraw(first.digest)
    post.link.room = 100
    post.channel.tick()
    assert [chunk.digest for chunk in post.link.published if isinstance(chunk, Chunk)] == [second.digest]


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


def test_lines_about_devices_stop_at_a_size_and_others_do_not(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker_server.serving.coordinator.sightings.MAX_FILE_BYTES", 1000)
    sightings = Sightings(log, lambda: 0.0, max_devices=10)
    for step in range(50):
        sightings.see(seen(step=step))
    log.write(stored_events.RunFinished(at=2.0, run_id="r"))
    found = list(EventReader(tmp_path / "events.jsonl").new_events())
    assert len(found) < 15
    assert isinstance(found[-1], stored_events.RunFinished)
    assert len(caplog.records) == 1


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
    post = Post()
    if kind != "register":
        post.register("board-7")
    for _ in range(5):
        assert post.channel.open(topics.up(FLEET, "board-7", kind), bytes.fromhex(OLD[kind])) is None
    post.channel.post()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "board-7" in lines[0]
    assert "schema_version 1, this release of fedspine speaks 2: upgrade fedspine on the side that sent it" in lines[0]
    assert {topic for topic, _ in post.link.words} == {topics.down(FLEET, "board-7", "refused")}
    with pytest.raises(MessageError, match="speaks schema_version 2, this device 1: upgrade fedspine on this device"):
        decode_message(post.link.words[0][1])


def test_words_to_devices_of_another_release_are_as_few_as_hellos() -> None:
    post = Post()
    for number in range(2 * int(HELLOS.burst)):
        post.channel.open(topics.up(FLEET, f"board-{number}", "register"), bytes.fromhex(OLD["register"]))
    post.channel.post()
    assert len(post.link.words) == HELLOS.burst
