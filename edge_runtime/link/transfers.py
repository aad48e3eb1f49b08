"""Blobs through MQTT, pulled by the receiver a window of chunks at a time; coordinator and devices use this module.

The receiver knows the header (:class:`~edge_runtime.wire.messages.BlobRef`) from a message. It requests some chunks,
repeats requests for missing chunks, and checks the digest at the end. The sender keeps no state per receiver: it
answers requests for its offered blobs. So reconnects, restarts and lost messages are no special cases.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from edge_runtime.bounds import limits
from edge_runtime.errors import FedSpineError, MessageError
from edge_runtime.link.complaints import Complaints
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import AnyMessage, BlobRef, Chunk, ChunkRequest

logger = logging.getLogger(__name__)

WINDOW: Final = 16
"""Most chunks that a receiver has requested and not yet received."""

FIRST_TIMEOUT_S: Final = 5.0
"""Silence after which the receiver repeats a request; doubles each time, up to the next value."""

LARGEST_TIMEOUT_S: Final = 60.0

MAX_ACTIVE: Final = 16
"""Most active incoming transfers, without slow ones; further transfers wait."""

TURN_S: Final = 5.0
"""Time over which the pace of a transfer is measured, seconds."""

SLOW_BYTES_S: Final = 16 * 1024
"""A transfer below this pace is slow: it does not count as active, so weak links or hostile senders block nobody."""

MAX_SLOW: Final = 256
"""Most slow transfers at once; if more wait, slow transfers take turns."""

DRIP_BYTES_S: Final = 1024
"""Pace below which a transfer's chunks are dropped when memory runs short; they are requested again."""

MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Most bytes of unfinished incoming blobs; one blob alone may be larger."""

MAX_CORRUPTED: Final = 3
"""A blob that arrived this often with a wrong digest is given up."""

Key = tuple[str, str]
"""Digest, peer."""

_Cut = Callable[[Iterable[int]], Iterator[Chunk]]
"""Chunks of one blob."""


@dataclasses.dataclass(slots=True)
class _Incoming:
    ref: BlobRef
    peer: str
    on_complete: Callable[[bytes], None]
    on_failed: Callable[[str], None] | None
    assembly: chunks.Assembly
    next_index: int = 0
    """First chunk that was never requested."""
    repeat: list[int] = dataclasses.field(default_factory=list)
    """Chunks whose request stayed unanswered, ascending; at most a window."""
    asked: set[int] = dataclasses.field(default_factory=set)
    received_bytes: int = 0
    repeat_at: float = 0.0
    timeout_s: float = FIRST_TIMEOUT_S
    num_corrupted: int = 0
    pace: float = math.inf
    """Bytes a second of the last turn that ended; infinite in the first."""
    turn_at: float = 0.0
    turn_bytes: int = 0
    """Bytes that arrived in this turn."""

    @property
    def is_slow(self) -> bool:
        """Return whether the transfer is slow, and does not count as active."""
        return self.pace < SLOW_BYTES_S

    def look(self, now: float) -> None:
        """Measure the pace if a turn is over."""
        if now - self.turn_at >= TURN_S:
            self.pace = self.turn_bytes / (now - self.turn_at)
            self.turn_at, self.turn_bytes = now, 0


class Transfers:
    """Outgoing and incoming blobs of one process. Not thread-safe: call it from the thread that reads the link."""

    def __init__(self, send: Callable[[str, AnyMessage], None], clock: Callable[[], float]) -> None:
        """Prepare.

        Args:
            send: publishes one message to a peer: a device id, or a device's constant for its coordinator.
            clock: monotonic seconds.
        """
        self._send = send
        self._clock = clock
        self._offers: dict[str, _Cut] = {}
        self._active: dict[Key, _Incoming] = {}
        self._waiting: collections.OrderedDict[Key, _Incoming] = collections.OrderedDict()
        self._parked: set[Key] = set()
        """Transfers that wait again; some of their chunks may have arrived."""
        self._complaints = Complaints(logger)

    def offer(self, digest: str, source: Callable[[], bytes], *, chunk_bytes: int = limits.CHUNK_BYTES) -> None:
        """Answer requests for a blob from now on; ``source`` reads it, ``chunk_bytes`` is that of the blob's header."""

        def cut(indices: Iterable[int]) -> Iterator[Chunk]:
            blob = source()
            ref = BlobRef(digest=digest, size_bytes=len(blob), chunk_bytes=chunk_bytes)
            return chunks.cut(blob, ref, indices)

        self._offers[digest] = cut

    def offer_file(self, ref: BlobRef, path: Path) -> None:
        """Answer requests for a blob in a file; only the requested chunks are read."""
        self._offers[ref.digest] = functools.partial(chunks.cut_file, path, ref)

    def withdraw(self, digest: str) -> None:
        """Stop answering requests for a blob; unknown digests are fine."""
        self._offers.pop(digest, None)

    def expect(
        self,
        ref: BlobRef,
        peer: str,
        on_complete: Callable[[bytes], None],
        on_failed: Callable[[str], None] | None = None,
    ) -> None:
        """Pull a blob from ``peer``; a pull that already runs is not started twice.

        Args:
            ref: header of the blob.
            peer: the peer that offers the blob.
            on_complete: called once with the bytes, their digest checked.
            on_failed: called once, with one line, when the blob keeps arriving corrupted.
        """
        key = (ref.digest, peer)
        if key in self._active or key in self._waiting:
            return
        self._waiting[key] = _Incoming(ref, peer, on_complete, on_failed, chunks.Assembly(ref))
        self._start_waiting()

    def is_expected(self, digest: str, peer: str) -> bool:
        """Return whether a blob is being pulled from ``peer``, or waits for its turn."""
        return (digest, peer) in self._active or (digest, peer) in self._waiting

    def cancel(self, digest: str, peer: str) -> None:
        """Give up an incoming blob and forget its chunks; its callbacks are not called. Unknown ones are fine."""
        self._active.pop((digest, peer), None)
        self._waiting.pop((digest, peer), None)
        self._parked.discard((digest, peer))
        self._start_waiting()

    def handle(self, peer: str, message: AnyMessage) -> bool:
        """Take a message that came from ``peer``; False if it is not about blobs."""
        if isinstance(message, ChunkRequest):
            self._answer(peer, message)
        elif isinstance(message, Chunk):
            self._take(peer, message)
        else:
            return False
        return True

    def tick(self) -> None:
        """Repeat unanswered requests; call it about once a second."""
        now = self._clock()
        for key in self._parked:
            self._waiting[key].look(now)
        for key, incoming in list(self._active.items()):
            incoming.look(now)
            if now < incoming.repeat_at:
                continue
            incoming.timeout_s = min(LARGEST_TIMEOUT_S, incoming.timeout_s * 2)
            if self._waiting:  # a silent peer gives up its turn if others wait
                self._park(key)
            else:
                self._unask(incoming)
                self._ask(incoming)
        slow = [key for key, incoming in self._active.items() if incoming.is_slow]
        for key in slow[: max(0, min(len(self._waiting), len(slow) - MAX_SLOW))]:
            self._park(key)
        self._start_waiting()

    def ask_again(self) -> None:
        """Repeat every open request at once, because after a reconnect earlier requests are lost."""
        for incoming in self._active.values():
            incoming.timeout_s = FIRST_TIMEOUT_S
            self._unask(incoming)
            self._ask(incoming)

    def _answer(self, peer: str, request: ChunkRequest) -> None:
        offer = self._offers.get(request.digest)
        if offer is None:
            logger.debug("%s asks for blob %s, which is not offered (any more)", peer, request.digest[:12])
            return
        try:
            for chunk in offer(request.missing[:WINDOW]):
                self._send(peer, chunk)
        except (FedSpineError, OSError) as error:
            self._complaints.say(peer, self._clock(), f"cannot be answered: {error}")

    def _take(self, peer: str, chunk: Chunk) -> None:
        key = (chunk.digest, peer)
        incoming = self._active.get(key) or self._waiting.get(key)
        if incoming is None:
            logger.debug("chunk %d of blob %s from %s is not expected (any more)", chunk.index, chunk.digest[:12], peer)
            return
        if chunk.index not in incoming.asked and chunk.index not in incoming.repeat:
            logger.debug("chunk %d of blob %s from %s was not asked for", chunk.index, chunk.digest[:12], peer)
            return
        had = incoming.assembly.has(chunk.index)
        try:
            incoming.assembly.add(chunk)
        except MessageError as error:
            self._complaints.say(peer, self._clock(), str(error))
            return
        incoming.asked.discard(chunk.index)
        if had:
            return
        incoming.received_bytes += len(chunk.payload)
        incoming.turn_bytes += len(chunk.payload)
        incoming.timeout_s = FIRST_TIMEOUT_S
        incoming.repeat_at = self._clock() + FIRST_TIMEOUT_S
        if incoming.assembly.is_complete:
            self._finish(key, incoming)
        elif key in self._active and len(incoming.asked) <= WINDOW // 2:
            self._ask(incoming)

    def _finish(self, key: Key, incoming: _Incoming) -> None:
        try:
            blob = incoming.assembly.blob()
        except MessageError as error:
            self._complaints.say(incoming.peer, self._clock(), str(error))
            incoming.num_corrupted += 1
            _forget(incoming)
            if incoming.num_corrupted < MAX_CORRUPTED:
                if key in self._active:
                    self._ask(incoming)
                return
            self.cancel(*key)
            if incoming.on_failed is not None:
                incoming.on_failed(f"blob {incoming.ref.digest[:12]} arrived corrupted {MAX_CORRUPTED} times")
            return
        self.cancel(*key)
        incoming.on_complete(blob)

    def _ask(self, incoming: _Incoming) -> None:
        room = WINDOW - len(incoming.asked)
        lacking = [index for index in incoming.repeat if not incoming.assembly.has(index)]
        wanted, incoming.repeat = lacking[:room], lacking[room:]
        while len(wanted) < room and incoming.next_index < incoming.ref.num_chunks:
            if not incoming.assembly.has(incoming.next_index):
                wanted.append(incoming.next_index)
            incoming.next_index += 1
        incoming.asked.update(wanted)
        incoming.repeat_at = self._clock() + incoming.timeout_s
        if wanted:
            self._send(incoming.peer, ChunkRequest(digest=incoming.ref.digest, missing=tuple(wanted)))

    @staticmethod
    def _unask(incoming: _Incoming) -> None:
        incoming.repeat = sorted({*incoming.repeat, *incoming.asked})
        incoming.asked.clear()

    def _park(self, key: Key) -> None:
        """Let an active transfer wait for another turn; chunks that still arrive are kept."""
        incoming = self._active.pop(key)
        self._unask(incoming)
        self._waiting[key] = incoming
        self._parked.add(key)

    def _start_waiting(self) -> None:
        while self._waiting and sum(not incoming.is_slow for incoming in self._active.values()) < MAX_ACTIVE:
            key, incoming = next(iter(self._waiting.items()))
            if self._active and self._held_bytes(key) + incoming.ref.size_bytes > MAX_HELD_BYTES:
                if not self._make_room(key):
                    return
                continue
            self._active[key] = self._waiting.pop(key)
            self._parked.discard(key)
            incoming.pace, incoming.turn_at, incoming.turn_bytes = math.inf, self._clock(), 0
            self._ask(incoming)

    def _held_bytes(self, but: Key) -> int:
        """Return the bytes that transfers may hold at the next check: a fast one all, a slow one a window more."""
        held = sum(self._waiting[key].received_bytes for key in self._parked if key != but)
        for incoming in self._active.values():
            size = incoming.ref.size_bytes
            window = incoming.received_bytes + WINDOW * incoming.ref.chunk_bytes
            held += min(size, window) if incoming.is_slow else size
        return held

    def _make_room(self, but: Key) -> bool:
        """Drop the chunks of a transfer that hardly progresses; False if there is none."""
        for key, incoming in [*self._active.items(), *((key, self._waiting[key]) for key in self._parked)]:
            if key != but and incoming.received_bytes and incoming.pace < DRIP_BYTES_S:
                if key in self._active:
                    self._park(key)
                _forget(incoming)
                return True
        return False


def _forget(incoming: _Incoming) -> None:
    """Begin a transfer anew."""
    incoming.assembly = chunks.Assembly(incoming.ref)
    incoming.received_bytes, incoming.next_index = 0, 0
    incoming.asked.clear()
    incoming.repeat.clear()
