"""Turns of senders of blobs: by progress, so that weak links and ill-willed senders keep nobody from a turn."""

from __future__ import annotations

import logging
import random

import pytest

from edge_runtime.link import transfers as module
from edge_runtime.link.transfers import MAX_ACTIVE, Transfers
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import AnyMessage, BlobRef, Chunk, ChunkRequest

CHUNK = 1024


class Peers:
    """A receiver, and peers that answer requests at a pace of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.receiver = Transfers(self._send, lambda: self.now)
        self.blobs: dict[str, tuple[bytes, BlobRef]] = {}
        self.asked: dict[str, list[int]] = {}
        self.arrived: dict[str, float] = {}
        self.chunks_per_s: dict[str, float] = {}
        self._credit: dict[str, float] = {}

    def _send(self, peer: str, message: AnyMessage) -> None:
        assert isinstance(message, ChunkRequest)
        self.asked.setdefault(peer, []).extend(message.missing)

    def announce(self, peer: str, num_chunks: int, chunks_per_s: float) -> None:
        blob = random.Random(peer).randbytes(num_chunks * CHUNK)
        ref = chunks.describe(blob, CHUNK)
        self.blobs[peer] = blob, ref
        self.chunks_per_s[peer], self._credit[peer] = chunks_per_s, 0.0
        self.receiver.expect(ref, peer, lambda _blob: self.arrived.__setitem__(peer, self.now))

    def second(self) -> None:
        """One second: each peer sends what it can of what it was asked for."""
        self.now += 1.0
        for peer, (blob, ref) in self.blobs.items():
            self._credit[peer] = min(self._credit[peer] + self.chunks_per_s[peer], 100.0)
            while self._credit[peer] >= 1 and self.asked.get(peer):
                self._credit[peer] -= 1
                (chunk,) = chunks.cut(blob, ref, [self.asked[peer].pop(0)])
                self.receiver.handle(peer, chunk)
        self.receiver.tick()


def test_senders_that_drip_keep_honest_ones_waiting_for_one_turn_only() -> None:
    peers = Peers()
    for i in range(MAX_ACTIVE):
        peers.announce(f"drip-{i}", 40, 0.25)
    for i in range(4):
        peers.announce(f"honest-{i}", 40, 100.0)
    for _ in range(15):
        peers.second()
    assert sorted(peers.arrived) == [f"honest-{i}" for i in range(4)]
    assert max(peers.arrived.values()) <= 10


def test_many_weak_links_get_through_side_by_side() -> None:
    """A hundred boards at 4 KB a second with 40 KB each: sixteen at a time would take over a minute."""
    peers = Peers()
    for i in range(100):
        peers.announce(f"weak-{i}", 40, 4.0)
    for _ in range(50):
        peers.second()
    assert len(peers.arrived) == 100


def test_more_slow_transfers_than_allowed_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACTIVE", 2)
    monkeypatch.setattr(module, "MAX_SLOW", 2)
    peers = Peers()
    for i in range(8):
        peers.announce(f"weak-{i}", 30, 2.0)
    for _ in range(200):
        peers.second()
        slow = [one for one in peers.receiver._active.values() if one.is_slow]
        assert len(slow) <= 2 + 2
    assert len(peers.arrived) == 8


def test_memory_held_by_senders_that_stop_before_the_end_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 100 * CHUNK)
    peers = Peers()
    for i in range(4):
        peers.announce(f"stops-{i}", 24, 23.0)
    peers.second()
    for i in range(4):
        peers.chunks_per_s[f"stops-{i}"] = peers._credit[f"stops-{i}"] = 0.0
    peers.announce("honest", 90, 100.0)
    for _ in range(40):
        peers.second()
    assert "honest" in peers.arrived
    for i in range(4):
        peers.chunks_per_s[f"stops-{i}"] = 23.0
    for _ in range(200):
        peers.second()
    assert len(peers.arrived) == 5


def test_chunk_that_was_not_asked_for_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers()
    peers.announce("a", 100, 0.0)
    blob, ref = peers.blobs["a"]
    for chunk in chunks.cut(blob, ref, range(module.WINDOW, 100)):
        peers.receiver.handle("a", chunk)
    for index in range(1000):
        peers.receiver.handle("a", Chunk(digest="0" * 64, index=index, payload=b"x" * CHUNK))
        peers.receiver.handle("b", Chunk(digest=ref.digest, index=index % 100, payload=b"x" * CHUNK))
    (incoming,) = peers.receiver._active.values()
    assert incoming.received_bytes == 0
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_chunks_of_a_wrong_length_cost_one_line(caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers()
    peers.announce("a", 100, 0.0)
    for _ in range(500):
        peers.receiver.handle("a", Chunk(digest=peers.blobs["a"][1].digest, index=3, payload=b"x"))
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
