"""Counts of the bytes that went up and down since the last update."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Traffic:
    """Payload bytes over MQTT (read from the link) and HTTP (counted here). Safe to use from several threads.

    Args:
        mqtt: current totals of the link, ``(sent, received)``.
    """

    def __init__(self, mqtt: Callable[[], tuple[int, int]]) -> None:
        self._mqtt = mqtt
        self._lock = threading.Lock()
        self._http_down = 0
        self._reported_up = 0
        self._reported_down = 0

    def add_http(self, num_bytes: int) -> None:
        """Count bytes that arrived over HTTP."""
        with self._lock:
            self._http_down += num_bytes

    def settle(self, upload_bytes: int) -> tuple[int, int]:
        """Bytes up and down since the last call.

        Args:
            upload_bytes: size of the update that is about to be sent; it is counted now, and not again later.
        """
        with self._lock:
            sent, received = self._mqtt()
            up, down = sent + upload_bytes, received + self._http_down
            result = (max(0, up - self._reported_up), max(0, down - self._reported_down))
            self._reported_up, self._reported_down = up, down
            return result
