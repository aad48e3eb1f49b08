"""Links to brokers by URL: real ones, and those inside the process of the tests."""

from __future__ import annotations

import functools
import itertools
from typing import Final

from edge_runtime.link.in_process import InProcessBroker
from edge_runtime.link.mqtt import BrokerAddress, MqttLink
from edge_runtime.link.protocol import OpenLink

_numbers = itertools.count(1)
_in_process: Final[dict[str, InProcessBroker]] = {}


class InProcess:
    """A broker inside this process with a URL of its own, for :func:`open_link`."""

    def __init__(self) -> None:
        self.url = f"mqtt://in-process:{next(_numbers)}"
        self.broker = _in_process[self.url] = InProcessBroker()

    def kill(self) -> None:
        self.broker.stop()

    def start(self) -> None:
        self.broker.start()

    def forget(self) -> None:
        del _in_process[self.url]


def is_in_process(url: str) -> bool:
    """Return whether a broker is inside this process."""
    return url in _in_process


def open_link(url: str) -> OpenLink:
    """Return the function that opens links to the broker at a URL."""
    if is_in_process(url):
        return _in_process[url].open_link
    return functools.partial(MqttLink, BrokerAddress.parse(url))
