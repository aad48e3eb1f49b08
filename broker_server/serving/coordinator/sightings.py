"""Limits on event lines about devices: only changes are written, with a rate limit for each device and for all.

Only people read these lines, so lines beyond the limits are dropped.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Final

import msgspec

from broker_server.serving.coordinator.buckets import Allowance, Bucket
from broker_server.serving.storage.events import DeviceSeen, EventLog

OF_ONE: Final = Allowance(burst=60, per_s=1)
"""Lines about one device; progress is reported about once a second."""
OF_ALL: Final = Allowance(burst=5_000, per_s=20)
"""Lines about all devices together."""
FOR_PROGRESS: Final = 0.5
"""Share of both limits for lines about progress; the rest is for changes of state."""
MAX_DETAIL: Final = 200
"""Longest detail, characters."""


class Sightings:
    """Writes :class:`DeviceSeen` events within bounds."""

    def __init__(self, events: EventLog, clock: Callable[[], float], max_devices: int) -> None:
        self._events = events
        self._clock = clock
        self._max_devices = max_devices
        self._last: collections.OrderedDict[str, tuple[DeviceSeen, Bucket]] = collections.OrderedDict()
        self._all = Bucket()

    def see(self, event: DeviceSeen) -> None:
        """Write a device's state, unless it did not change, or too much was written."""
        now, said = self._clock(), msgspec.structs.replace(event, at=0.0, detail=event.detail[:MAX_DETAIL])
        before, bucket = self._last.pop(event.device_id, (None, Bucket()))
        is_progress = before is not None and (said.state, said.round_number) == (before.state, before.round_number)
        of_one, of_all = (_part(whole, FOR_PROGRESS if is_progress else 1.0) for whole in (OF_ONE, OF_ALL))
        is_written = said != before and bucket.take(of_one, now) and self._all.take(of_all, now)
        self._last[event.device_id] = (said if is_written or before is None else before, bucket)
        while len(self._last) > self._max_devices:
            self._last.popitem(last=False)
        if is_written:
            self._events.write(msgspec.structs.replace(said, at=event.at))


def _part(whole: Allowance, share: float) -> Allowance:
    return Allowance(burst=whole.burst * share, per_s=whole.per_s)
