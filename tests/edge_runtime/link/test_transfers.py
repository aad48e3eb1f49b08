from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bounds import limits
from edge_runtime.formats.manifest import digest_of
from edge_runtime.link import transfers as module
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import AnyMessage, BlobRef, Chunk, ChunkRequest, Hello

Wire = list[tuple[str, str, AnyMessage]]


class Net:
    """Two ends and the messages between them, which a test delivers, loses, repeats or reorders."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wire: Wire = []
        self.receiver = Transfers(self._sender("receiver"), lambda: self.now)
        self.sender = Transfers(self._sender("sender"), lambda: self.now)
        self.arrived: list[bytes] = []
        self.failed: list[str] = []

    def _sender(self, name: str) -> Callable[[str, AnyMessage], None]:
        return lambda peer, message: self.wire.append((name, peer, message))

    def deliver(self) -> None:
        while self.wire:
            origin, peer, message = self.wire.pop(0)
            {"sender": self.sender, "receiver": self.receiver}[peer].handle(origin, message)

    def expect(self, ref: BlobRef) -> None:
        self.receiver.expect(ref, "sender", self.arrived.append, self.failed.append)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.receiver.tick()


def blob_of(num_chunks: int, chunk_bytes: int = 10) -> tuple[bytes, BlobRef]:
    blob = random.Random(num_chunks).randbytes(num_chunks * chunk_bytes - 3)
    return blob, chunks.describe(blob, chunk_bytes)


def offer(net: Net, blob: bytes, ref: BlobRef) -> None:
    net.sender.offer(ref.digest, lambda: blob, chunk_bytes=ref.chunk_bytes)


@pytest.mark.parametrize("num_chunks", [1, 15, 16, 17, 100])
def test_a_blob_arrives_whole(num_chunks: int) -> None:
    net, (blob, ref) = Net(), blob_of(num_chunks)
    offer(net, blob, ref)
    net.expect(ref)
    net.deliver()
    assert net.arrived == [blob]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32))
def test_a_blob_arrives_over_a_bad_network(num_chunks: int, seed: int) -> None:
    rng = random.Random(seed)
    net, (blob, ref) = Net(), blob_of(num_chunks)
    offer(net, blob, ref)
    net.expect(ref)
    for _ in range(400):
        rng.shuffle(net.wire)
        kept = [entry for entry in net.wire if rng.random() > 0.3]
        net.wire = kept + [entry for entry in kept if rng.random() < 0.2]
        net.deliver()
        if net.arrived:
            break
        net.tick(61)
    assert net.arrived == [blob]


def test_never_more_than_a_window_is_under_way() -> None:
    net, (_, ref) = Net(), blob_of(100)
    net.expect(ref)
    asked = [len(m.missing) for _, _, m in net.wire if isinstance(m, ChunkRequest)]
    assert asked == [module.WINDOW]


def test_a_request_without_answer_is_repeated_ever_later() -> None:
    net, (_, ref) = Net(), blob_of(2)
    net.expect(ref)
    repeated_at = []
    for second in range(200):
        net.wire.clear()
        net.tick(1)
        if net.wire:
            repeated_at.append(second + 1)
    assert repeated_at == [5, 15, 35, 75, 135, 195]


def test_after_a_reconnect_requests_are_repeated_at_once() -> None:
    net, (blob, ref) = Net(), blob_of(20)
    offer(net, blob, ref)
    net.expect(ref)
    net.wire.clear()
    net.receiver.ask_again()
    net.deliver()
    assert net.arrived == [blob]


def test_a_blob_expected_twice_is_pulled_once() -> None:
    net, (blob, ref) = Net(), blob_of(3)
    offer(net, blob, ref)
    net.expect(ref)
    net.expect(ref)
    net.deliver()
    assert net.arrived == [blob]


def test_one_blob_may_be_pulled_by_many() -> None:
    net, (blob, ref) = Net(), blob_of(40)
    offer(net, blob, ref)
    got: dict[str, bytes] = {}
    ends = {}
    for name in ("one", "two"):
        ends[name] = Transfers(net._sender(name), lambda: 0.0)
        ends[name].expect(ref, "sender", lambda data, name=name: got.__setitem__(name, data))  # type: ignore[misc]
    while net.wire:
        origin, peer, message = net.wire.pop(0)
        (net.sender if peer == "sender" else ends[peer]).handle(origin, message)
    assert got == {"one": blob, "two": blob}


def test_the_same_digest_from_two_peers_is_two_transfers() -> None:
    net, (_, ref) = Net(), blob_of(2)
    net.receiver.expect(ref, "a", net.arrived.append)
    net.receiver.expect(ref, "b", net.arrived.append)
    assert [peer for _, peer, _ in net.wire] == ["a", "b"]


def test_a_cancelled_blob_is_forgotten() -> None:
    net, (blob, ref) = Net(), blob_of(3)
    offer(net, blob, ref)
    net.expect(ref)
    net.receiver.cancel(ref.digest, "sender")
    net.deliver()
    assert net.arrived == []
    assert not net.receiver.is_expected(ref.digest, "sender")


def test_a_withdrawn_blob_is_not_sent() -> None:
    net, (blob, ref) = Net(), blob_of(3)
    offer(net, blob, ref)
    net.sender.withdraw(ref.digest)
    net.expect(ref)
    net.deliver()
    assert net.arrived == []


def test_chunks_from_another_peer_are_ignored() -> None:
    net, (blob, ref) = Net(), blob_of(1)
    net.expect(ref)
    net.receiver.handle("stranger", next(chunks.cut(blob, ref)))
    assert net.arrived == []


def test_corrupted_blobs_are_asked_for_again() -> None:
    net, (blob, ref) = Net(), blob_of(4)
    answers = iter([b"\0" * len(blob), blob])
    net.sender.offer(ref.digest, lambda: next(answers), chunk_bytes=ref.chunk_bytes)
    net.expect(ref)
    net.deliver()
    assert net.arrived == [blob]


def test_a_blob_that_is_always_corrupted_is_given_up() -> None:
    net, (blob, ref) = Net(), blob_of(4)
    net.sender.offer(ref.digest, lambda: b"\0" * len(blob), chunk_bytes=ref.chunk_bytes)
    net.expect(ref)
    net.deliver()
    assert net.arrived == []
    assert net.failed == [f"blob {ref.digest[:12]} arrived corrupted 3 times"]


def test_a_chunk_of_a_wrong_length_is_dropped() -> None:
    net, (blob, ref) = Net(), blob_of(1)
    net.expect(ref)
    net.receiver.handle("sender", Chunk(digest=ref.digest, index=0, payload=b"x"))
    net.receiver.handle("sender", Chunk(digest=ref.digest, index=0, payload=blob))
    assert net.arrived == [blob]


def test_a_request_outside_the_blob_is_survived() -> None:
    net, (blob, ref) = Net(), blob_of(2)
    offer(net, blob, ref)
    assert net.sender.handle("receiver", ChunkRequest(digest=ref.digest, missing=(7,)))
    assert net.wire == []


def test_a_source_that_cannot_be_read_is_survived() -> None:
    net, (_, ref) = Net(), blob_of(2)

    def fail() -> bytes:
        raise FileNotFoundError(2, "gone")

    net.sender.offer(ref.digest, fail)
    assert net.sender.handle("receiver", ChunkRequest(digest=ref.digest, missing=(0,)))
    assert net.wire == []


def test_of_a_file_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    size, chunk = limits.MAX_BLOB_BYTES - 10, limits.CHUNK_BYTES
    with path.open("wb") as file:  # half a gigabyte that takes no room on the disk
        file.truncate(size)
        file.seek(7 * chunk)
        file.write(b"seven")
    ref = BlobRef(digest="ab" * 32, size_bytes=size, chunk_bytes=chunk)
    net = Net()
    net.sender.offer_file(ref, path)
    tracemalloc.start()
    net.sender.handle("receiver", ChunkRequest(digest=ref.digest, missing=(7, ref.num_chunks - 1)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    payloads = [m.payload for _, _, m in net.wire if isinstance(m, Chunk)]
    assert (payloads[0][:5], len(payloads[0]), len(payloads[1])) == (b"seven", chunk, chunk - 10)
    assert peak < 1_000_000


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_a_file_that_is_not_what_it_was_is_survived(tmp_path: Path, damage: str) -> None:
    net, (blob, ref) = Net(), blob_of(4)
    if damage == "short":
        (tmp_path / "blob").write_bytes(blob[:12])
    net.sender.offer_file(ref, tmp_path / "blob")
    assert net.sender.handle("receiver", ChunkRequest(digest=ref.digest, missing=(1, 3)))
    assert net.wire == []


def test_a_header_of_many_chunks_costs_no_memory() -> None:
    """A peer's announcement is believed only as far as it delivers."""
    net = Net()
    tracemalloc.start()
    for number in range(100):
        digest = f"{number:064x}"
        net.receiver.expect(BlobRef(digest=digest, size_bytes=limits.MAX_BLOB_BYTES, chunk_bytes=1024), "p", print)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_one_request_is_answered_with_a_bounded_number_of_chunks() -> None:
    net, (blob, ref) = Net(), blob_of(100)
    offer(net, blob, ref)
    net.sender.handle("receiver", ChunkRequest(digest=ref.digest, missing=tuple(range(100))))
    assert len(net.wire) == module.WINDOW


def test_other_messages_are_left_to_others() -> None:
    assert not Net().receiver.handle("sender", Hello(run_id="r", session_id="s"))


def test_only_so_many_transfers_run_at_once_and_the_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACTIVE", 2)
    net = Net()
    pairs = [blob_of(n) for n in (1, 2, 3)]
    for blob, ref in pairs:
        offer(net, blob, ref)
        net.expect(ref)
    assert len({m.digest for _, _, m in net.wire if isinstance(m, ChunkRequest)}) == 2
    net.deliver()
    assert sorted(map(digest_of, net.arrived)) == sorted(ref.digest for _, ref in pairs)


def test_a_silent_peer_gives_its_turn_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACTIVE", 1)
    net, (_, silent), (blob, ref) = Net(), blob_of(5), blob_of(2)
    net.expect(silent)
    offer(net, blob, ref)
    net.expect(ref)
    net.deliver()
    assert net.arrived == []
    net.tick(6)
    net.deliver()
    assert net.arrived == [blob]
    assert net.receiver.is_expected(silent.digest, "sender")


def test_bytes_held_are_bounded_but_one_large_blob_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 50)
    net, (large, large_ref), (small, small_ref) = Net(), blob_of(20), blob_of(2)
    for blob, ref in ((large, large_ref), (small, small_ref)):
        offer(net, blob, ref)
        net.expect(ref)
    assert {m.digest for _, _, m in net.wire if isinstance(m, ChunkRequest)} == {large_ref.digest}
    net.deliver()
    assert net.arrived == [large, small]
