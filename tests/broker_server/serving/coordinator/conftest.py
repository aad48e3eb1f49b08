from __future__ import annotations

import pytest

from tests.broker_server.serving.coordinator.channel import QuietChannel


@pytest.fixture
def quiet() -> QuietChannel:
    one = QuietChannel()
    one.register("a")
    one.register("b")
    return one
