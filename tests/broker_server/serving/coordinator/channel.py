"""A coordinator's device channel at a clock that stands still, on a link that keeps what is published."""

from __future__ import annotations

import msgspec

from broker_server.serving.coordinator.device_channel import DeviceChannel
from edge_runtime.wire import topics
from edge_runtime.wire.messages import (
    AnyMessage,
    DeviceState,
    Register,
    Status,
    decode_message,
    encode_message,
    kind_of,
)
from tests.broker_server import tiny
from tests.broker_server.fleet import FLEET


class KeepingLink:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.published: list[AnyMessage] = []
        self.topics: list[str] = []
        self.words: list[tuple[str, bytes]] = []
        """To devices of other releases."""
        self.room = 1 << 30
        """Messages until it is full."""

    @property
    def has_room(self) -> bool:
        return len(self.published) < self.room

    def publish(self, topic: str, payload: bytes) -> None:
        assert topic.startswith("fedspine/")
        if topic.endswith("/refused"):
            self.words.append((topic, payload))
        else:
            self.published.append(decode_message(payload))
            self.topics.append(topic)


class QuietChannel:
    """A channel at a clock that stands still."""

    def __init__(self, max_devices: int = 100) -> None:
        self.now = 1000.0
        self.link = KeepingLink()
        self.channel = DeviceChannel(FLEET, self.link, lambda: self.now, max_devices=max_devices)  # type: ignore[arg-type]

    def register(self, device_id: str) -> bool:
        return self.channel.registry.register(device_id, "s", self.now)

    def open(self, device_id: str, message: AnyMessage) -> object:
        return self.channel.open(topics.up(FLEET, device_id, kind_of(message)), encode_message(message))


def status(device_id: str = "a", detail: str = "", step: int = 0) -> Status:
    return Status(device_id=device_id, session_id="s", state=DeviceState.TRAINING, step=step, detail=detail)


def register(device_id: str = "a", versions: dict[str, str] | None = None) -> Register:
    capabilities = msgspec.structs.replace(tiny.capabilities(), versions=versions or {})
    return Register(device_id=device_id, session_id="s", capabilities=capabilities, num_examples=1)
