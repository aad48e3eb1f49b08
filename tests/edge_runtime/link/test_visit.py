from __future__ import annotations

import random
import socket
from typing import Any

import pytest

from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.errors import BrokerUnreachableError
from edge_runtime.link.reflex import Reflex
from edge_runtime.link.visit import visit
from tests.waiting import wait_until


def test_a_broker_that_answers_lets_a_probe_in_and_out(broker: Any) -> None:
    heard: list[bytes] = []
    reflex = Reflex(topic="t/visit", greet=lambda: b"hello", hear=heard.append)
    for _ in range(2):
        with visit(BrokerAddress.parse(broker.url), TlsFiles(), random.Random(0), reflex):
            wait_until(lambda: bool(heard))
        assert heard == [b"hello"], "a visit that is over would hear the next one"
        heard.clear()


def test_nobody_answers_a_probe() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(BrokerUnreachableError, match=str(port)),
        visit(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), TlsFiles(), random.Random(0)),
    ):
        pytest.fail("connected")
