"""A wire-tap: subscribes to everything on a broker, and keeps what devices say, and the sizes of all messages."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class Tap:
    """Listens from before the broker runs until it ends.

    Attributes:
        largest_bytes: largest payload seen.
        kinds: messages seen, by kind.
        up: topics and payloads of the messages from devices, in order, but for chunks.
    """

    def __init__(self, port: int) -> None:
        self.largest_bytes = 0
        self.kinds: Counter[str] = Counter()
        self.up: list[tuple[str, bytes]] = []
        self._port = port
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="wire-tap")
        self._client.on_connect = self._subscribe
        self._client.on_message = self._take
        self._connecting = threading.Thread(target=self._connect, daemon=True)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._connecting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._connecting.join()
        self._client.disconnect()
        self._client.loop_stop()

    def _connect(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                self._client.connect("127.0.0.1", self._port)
                self._client.loop_start()
                return
            time.sleep(0.02)

    def _subscribe(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe("#", qos=0)

    def _take(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.largest_bytes = max(self.largest_bytes, len(message.payload))
        kind = message.topic.rpartition("/")[2]
        self.kinds[kind] += 1
        if "/up/" in message.topic and kind != "chunk":
            self.up.append((message.topic, bytes(message.payload)))
