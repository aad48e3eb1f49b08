"""Links for tests: hardly any waiting, and events that are waited for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from edge_runtime.link.mqtt import LinkEvent, MqttLink

MakeLink = Callable[..., MqttLink]


class Jitter(random.Random):
    """Records the bounds it is asked for and hardly waits.

    Not zero: who connects to a closed loopback port again and again meets itself in the end (a simultaneous open).
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.bounds: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append((a, b))
        return 0.02


def next_event(link: MqttLink, kind: type[LinkEvent], timeout_s: float = 20.0) -> Any:
    """The next event of a kind; others are skipped."""
    deadline = time.monotonic() + timeout_s
    while True:
        event = link.events.get(timeout=max(0.01, deadline - time.monotonic()))
        if isinstance(event, kind):
            return event
