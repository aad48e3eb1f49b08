"""Updates on their way: kept on disk, announced until answered, their blobs offered in chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge_runtime.agent.outbox import Outbox
from edge_runtime.agent.repeat import Repeat
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire.messages import AssignmentKey, Update

logger = logging.getLogger(__name__)


class Uploads:
    """The updates of this device that the coordinator has not answered.

    Args:
        outbox: stores the updates.
        transfers: offers their blobs.
        publish: publishes an update's message.
        new_repeat: makes a timer for one update.
    """

    def __init__(
        self,
        outbox: Outbox,
        transfers: Transfers,
        publish: Callable[[Update], None],
        new_repeat: Callable[[], Repeat],
    ) -> None:
        self._outbox = outbox
        self._transfers = transfers
        self._publish = publish
        self._new_repeat = new_repeat
        self._timers: dict[AssignmentKey, Repeat] = {}

    @property
    def pending(self) -> Update | None:
        """The newest update that is being announced; None when there is none."""
        waiting = [update for update in self._outbox.updates() if update.key in self._timers]
        return waiting[-1] if waiting else None

    def open(self, run_id: str) -> None:
        """Announce the updates of run ``run_id``; updates of other runs stay on disk until their run is back."""
        for update in self._outbox.updates():
            if update.key.run_id == run_id:
                self._offer(update)
            elif self._timers.pop(update.key, None) is not None:
                logger.info("an update of run %s stays in the outbox until that run is back", update.key.run_id)
                self._withdraw(update)

    def add(self, update: Update, blob: bytes) -> None:
        """Put an update on disk and announce it.

        Raises:
            DiskFullError: there is no space.
            OSError: any other fault of the file system.
        """
        before = self._outbox.updates()
        self._outbox.add(update, blob)
        self._offer(update)
        for dropped in before:
            if self._outbox.get(dropped.key) is None:
                self._timers.pop(dropped.key, None)
                self._withdraw(dropped)

    def has(self, key: AssignmentKey) -> bool:
        """Return whether the update of an assignment waits here; if so, announce it again at once."""
        timer = self._timers.get(key)
        if timer is not None:
            timer.restart()
        return timer is not None

    def close(self, key: AssignmentKey) -> Update | None:
        """Forget an answered update; returns it if it was here."""
        self._timers.pop(key, None)
        update = self._outbox.remove(key)
        if update is not None:
            self._withdraw(update)
        return update

    def heard(self, digest: str) -> None:
        """Note that the coordinator asked for chunks of a blob, so it has the update's message."""
        for update in self._outbox.updates():
            timer = self._timers.get(update.key)
            if update.blob is not None and update.blob.digest == digest and timer is not None:
                timer.heard()

    def restart(self) -> None:
        """Announce everything again at once, after a reconnect."""
        for timer in self._timers.values():
            timer.restart()

    def tick(self) -> None:
        """Announce updates that are due; call it often."""
        for update in self._outbox.updates():
            timer = self._timers.get(update.key)
            if timer is not None and timer.is_due:
                self._publish(update)
                timer.said()

    def _withdraw(self, gone: Update) -> None:
        """Stop offering a blob, unless another update has the same bytes; then offer that update's file."""
        if gone.blob is None:
            return
        self._transfers.withdraw(gone.blob.digest)
        for update in self._outbox.updates():
            if update.blob is not None and update.blob.digest == gone.blob.digest and update.key in self._timers:
                self._transfers.offer_file(update.blob, self._outbox.blob_file(update.key))

    def _offer(self, update: Update) -> None:
        key = update.key
        if key not in self._timers:
            if update.blob is not None:
                self._transfers.offer_file(update.blob, self._outbox.blob_file(key))
            self._timers[key] = self._new_repeat()
