"""Updates on disk until the coordinator has answered: they survive kill -9 and a power cut.

Each entry has two files: first the blob ``<key>.safetensors``, then ``<key>.update``, the encoded message with the
blob's digest. An entry exists once ``<key>.update`` does. There is no blob file if the message holds the whole reply.
"""

from __future__ import annotations

import collections
import logging
import re
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.errors import MessageError
from edge_runtime.formats.manifest import digest_of
from edge_runtime.system.files import measure, write_atomically
from edge_runtime.wire.messages import AssignmentKey, Update, decode_message, encode_message

logger = logging.getLogger(__name__)

MAX_ENTRIES: Final = 4
"""Most updates that are kept; one more removes the oldest update of the run that has the most."""

_MESSAGE: Final = ".update"
_BLOB: Final = ".safetensors"
_OURS: Final = re.compile(r"[0-9a-f]{24}\.(update|safetensors)|\.[0-9a-f]{24}\.(update|safetensors)\.[0-9a-f]{8}\.part")
"""Names of entries, and of the temporary files of :func:`write_atomically` for them."""


class Outbox:
    """The updates of one device that wait for a verdict.

    Args:
        directory: folder of the entries; entries that cannot be read are removed, all other files stay.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._entries: dict[AssignmentKey, Update] = {}
        written = [path for path in directory.iterdir() if _OURS.fullmatch(path.name) and path.is_file()]
        messages = [path for path in written if path.suffix == _MESSAGE]
        for path in sorted(messages, key=lambda path: path.stat().st_mtime_ns):
            update = self._load(path)
            if update is not None:
                self._entries[update.key] = update
        kept = {_stem(key) + suffix for key in self._entries for suffix in (_MESSAGE, _BLOB)}
        for path in written:
            if path.name not in kept:
                path.unlink()

    def add(self, update: Update, blob: bytes) -> None:
        """Store an update; once this returns, the update survives a power cut. An older update may be removed for it.

        Raises:
            DiskFullError: there is no space; nothing of this update is left, and the others stay.
            OSError: any other fault of the file system, with the same effect.
        """
        key = update.key
        try:
            if update.blob is not None:
                write_atomically(self.blob_file(key), blob)
            write_atomically(self._file(key, _MESSAGE), encode_message(update))
        except Exception:
            self.remove(key)
            raise
        self._entries[key] = update
        while len(self._entries) > MAX_ENTRIES:
            oldest = self._oldest_of_the_fullest()
            logger.warning(
                "outbox is full; dropping the update of round %d of run %s", oldest.round_number, oldest.run_id
            )
            self.remove(oldest)

    def get(self, key: AssignmentKey) -> Update | None:
        """The update of an assignment, if it waits here."""
        return self._entries.get(key)

    def updates(self) -> list[Update]:
        """All stored updates, oldest first."""
        return list(self._entries.values())

    def blob_file(self, key: AssignmentKey) -> Path:
        """Return the file of an update's blob, if it waits here."""
        return self._file(key, _BLOB)

    def remove(self, key: AssignmentKey) -> Update | None:
        """Forget an update; returns it if it was here."""
        update = self._entries.pop(key, None)
        for suffix in (_MESSAGE, _BLOB):
            self._file(key, suffix).unlink(missing_ok=True)
        return update

    def _file(self, key: AssignmentKey, suffix: str) -> Path:
        return self._directory / (_stem(key) + suffix)

    def _oldest_of_the_fullest(self) -> AssignmentKey:
        """The oldest update of the run that has the most, so that no run displaces all updates of another."""
        counts = collections.Counter(key.run_id for key in self._entries)
        most = max(counts.values())
        return next(key for key in self._entries if counts[key.run_id] == most)

    def _load(self, path: Path) -> Update | None:
        try:
            update = decode_message(path.read_bytes())
            expected = update.blob.digest if isinstance(update, Update) and update.blob is not None else None
            digest = None if expected is None else measure(path.with_suffix(_BLOB))[1]
        except (OSError, MessageError) as error:
            logger.warning("dropping %s from the outbox: %s", path.name, error)
            return None
        if not isinstance(update, Update) or digest != expected:
            logger.warning("dropping %s from the outbox: it does not belong to its blob", path.name)
            return None
        return update if _stem(update.key) == path.stem else None


def _stem(key: AssignmentKey) -> str:
    return digest_of(msgspec.msgpack.encode(key))[:24]
