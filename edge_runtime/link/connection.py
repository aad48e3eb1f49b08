"""One connection to a broker, from CONNECT to its end. It is never reused: whatever was under way dies with it.

paho keeps unconfirmed messages of a client in memory and sends them again after a reconnect. Here every connection has
a client of its own, so nothing old is sent twice and no queue outlives its connection; the protocol repeats what was
not answered.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.link.address import BrokerAddress
from edge_runtime.link.errors import BrokerRefusedError, BrokerUnreachableError, LinkError

logger = logging.getLogger(__name__)

KEEPALIVE_S: Final = 30
"""Silence after which the broker publishes the last will (after one and a half times as much)."""

TOPIC_ALLOWANCE_BYTES: Final = 1024
"""What a PUBLISH packet may hold beside the payload: topic, properties, fixed header."""

MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
"""Most payload bytes that wait for the broker's confirmation; what is published beyond is dropped."""

RECEIVE_MAXIMUM: Final = 64
"""Most QoS 1 messages that an MQTT 5 broker may have under way to us at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What stays the same from one connection of a link to the next."""

    address: BrokerAddress
    client_id: str
    subscriptions: tuple[str, ...]
    will: tuple[str, bytes] | None
    max_message_bytes: int
    tls: ssl.SSLContext | None
    connect_timeout_s: float


MQTT5_ANSWER_S: Final = 3.0
"""Silence after which MQTT 5 counts as not spoken: amqtt takes its CONNECT for a shorter one and waits for more."""


class UnsupportedProtocolError(LinkError):
    """The broker does not speak the protocol version that was tried; another one is tried next."""


class Connection:
    """One connection.

    ``on_message`` and ``on_lost`` are called from the network thread; ``on_lost`` at most once, and never for a
    connection that :meth:`open` did not bring about.
    """

    def __init__(
        self,
        settings: Settings,
        protocol: MQTTProtocolVersion,
        on_message: Callable[[str, bytes], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.protocol = protocol
        self._settings = settings
        self._on_message = on_message
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._outcome: queue.Queue[LinkError | None] = queue.Queue()
        self._is_open = False
        self._is_over = False
        self._network_thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._unconfirmed: dict[int, int] = {}
        self._confirmed_early: set[int] = set()
        self._unconfirmed_bytes = 0
        self._qos = 1
        self._client = self._make_client()

    @property
    def is_open(self) -> bool:
        """Whether messages can be published."""
        return self._is_open and not self._is_over and not self.is_dead

    @property
    def is_dead(self) -> bool:
        """Whether the network thread ended without a word: an error in paho, or in a callback of ours."""
        thread = self._network_thread
        return self._is_open and not self._is_over and thread is not None and not thread.is_alive()

    def open(self) -> None:
        """Connect and subscribe; returns when the broker has confirmed both.

        Raises:
            BrokerUnreachableError: nothing answers in time, or not as a broker does.
            BrokerRefusedError: the broker, or the check of its certificate, says no.
            UnsupportedProtocolError: another MQTT version must be tried.
        """
        address = self._settings.address
        try:
            if self.protocol == MQTTProtocolVersion.MQTTv5:
                self._client.connect(
                    address.host, address.port, KEEPALIVE_S, clean_start=True, properties=self._connect_properties()
                )
            else:
                self._client.connect(address.host, address.port, KEEPALIVE_S)
        except ssl.SSLError as error:
            msg = f"TLS with broker {address} failed ({error.reason or error}): check --ca-file, host name and port"
            raise BrokerRefusedError(msg) from error
        except (OSError, ValueError) as error:
            msg = f"broker {address} is unreachable ({error}): check host, port, firewall, and that the broker runs"
            raise BrokerUnreachableError(msg) from error
        self._client.loop_start()
        timeout_s = self._settings.connect_timeout_s
        is_v5 = self.protocol == MQTTProtocolVersion.MQTTv5
        try:
            problem = self._outcome.get(timeout=min(timeout_s, MQTT5_ANSWER_S) if is_v5 else timeout_s)
        except queue.Empty:
            problem = self._no_answer(timeout_s)
        if problem is not None:
            self.abandon()
            raise problem

    def publish(self, topic: str, payload: bytes) -> paho.MQTTMessageInfo | None:
        """Hand one message to the network thread; None when it was dropped (not connected, or too much under way)."""
        with self._lock:
            if not self.is_open or self._unconfirmed_bytes + len(payload) > MAX_QUEUED_BYTES:
                return None
            self._unconfirmed_bytes += len(payload)
        info = self._client.publish(topic, payload, qos=self._qos)
        with self._lock:
            if info.rc in {MQTTErrorCode.MQTT_ERR_NO_CONN, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE}:
                self._unconfirmed_bytes -= len(payload)
                return None
            if info.mid in self._confirmed_early:
                self._confirmed_early.discard(info.mid)
                self._unconfirmed_bytes -= len(payload)
            else:
                self._unconfirmed[info.mid] = len(payload)
        return info

    def close(self, timeout_s: float) -> None:
        """Say good-bye to the broker (no last will is published) and wait at most ``timeout_s`` for the end."""
        self._client.disconnect()
        self._ended.wait(timeout_s)
        self._is_over = True

    def abandon(self) -> None:
        """Drop a connection that did not come about."""
        self._is_over = True
        self._client.disconnect()

    def bury(self) -> None:
        """Close the socket of a connection whose network thread is dead; the broker publishes the last will."""
        self._is_over = True
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _make_client(self) -> paho.Client:
        settings = self._settings
        address = settings.address
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=self.protocol,
            clean_session=None if self.protocol == MQTTProtocolVersion.MQTTv5 else True,
            transport="websockets" if address.is_websocket else "tcp",
            reconnect_on_failure=False,
        )
        client.connect_timeout = settings.connect_timeout_s
        client.max_queued_messages_set(0)  # bounded in bytes instead, by publish
        if address.is_websocket:
            client.ws_set_options(path=address.path)
        if settings.tls is not None:
            client.tls_set_context(settings.tls)
        if address.username is not None or address.password is not None:
            client.username_pw_set(address.username or "", address.password)
        if settings.will is not None:
            topic, payload = settings.will
            client.will_set(topic, payload, qos=1)
        client.on_connect = self._handle_connect
        client.on_subscribe = self._handle_subscribe
        client.on_publish = self._handle_publish
        client.on_message = self._handle_message
        client.on_disconnect = self._handle_disconnect
        return client

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = self._settings.max_message_bytes + TOPIC_ALLOWANCE_BYTES
        return properties

    def _handle_connect(
        self, client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._network_thread = threading.current_thread()
        if reason.is_failure:
            self._outcome.put(self._refusal(reason))
            return
        largest = getattr(properties, "MaximumPacketSize", None)
        needed = self._settings.max_message_bytes + TOPIC_ALLOWANCE_BYTES
        if largest is not None and largest < needed:
            msg = (
                f"broker {self._settings.address} accepts packets of at most {largest} bytes, this needs {needed}: "
                "raise the broker's limit (mosquitto: max_packet_size), or use another broker"
            )
            self._outcome.put(BrokerRefusedError(msg))
            return
        self._qos = min(1, getattr(properties, "MaximumQoS", 1))
        if self._settings.subscriptions:
            client.subscribe([(topic, self._qos) for topic in self._settings.subscriptions])
        else:
            self._is_open = True
            self._outcome.put(None)

    def _handle_subscribe(
        self, _client: paho.Client, _userdata: object, _mid: int, reasons: Sequence[ReasonCode], _properties: object
    ) -> None:
        for topic, reason in zip(self._settings.subscriptions, reasons, strict=False):
            if reason.is_failure:
                msg = (
                    f"broker {self._settings.address} does not let {self._settings.client_id!r} read {topic} "
                    f"({reason}): check user, password and the broker's ACL"
                )
                self._outcome.put(BrokerRefusedError(msg))
                return
        self._is_open = True
        self._outcome.put(None)

    def _handle_publish(
        self, _client: paho.Client, _userdata: object, mid: int, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            logger.warning("broker refused a message: %s; check its ACL", reason)
        with self._lock:
            if mid in self._unconfirmed:
                self._unconfirmed_bytes -= self._unconfirmed.pop(mid)
            else:
                self._confirmed_early.add(mid)

    def _handle_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        if not self._is_over:
            try:
                topic = message.topic
            except UnicodeDecodeError:
                logger.warning("dropped a message whose topic is not UTF-8")
                return
            self._on_message(topic, bytes(message.payload))

    def _handle_disconnect(self, *arguments: Any) -> None:  # noqa: ANN401 - paho passes five, one of them matters
        reason: ReasonCode = arguments[3]
        was_open, self._is_open = self._is_open, False
        self._ended.set()
        if not was_open:
            self._outcome.put(self._end_before_answer())
        elif not self._is_over:
            self._is_over = True
            self._on_lost(str(reason))

    def _no_answer(self, timeout_s: float) -> LinkError:
        address = self._settings.address
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            return UnsupportedProtocolError(f"broker {address} did not answer MQTT 5")
        return BrokerUnreachableError(
            f"broker {address} accepts connections but did not answer MQTT within {timeout_s:g} s: "
            "check that the port is the broker's"
        )

    def _end_before_answer(self) -> LinkError:
        address = self._settings.address
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            return UnsupportedProtocolError(f"broker {address} closed the connection on MQTT 5")
        kind = "encrypted" if address.is_encrypted else "unencrypted"
        return BrokerUnreachableError(
            f"broker {address} closed the connection without an answer: check that the port speaks {kind} MQTT, "
            "and whether it asks for a client certificate"
        )

    def _refusal(self, reason: ReasonCode) -> LinkError:
        text = str(reason)
        if "rotocol version" in text:
            return UnsupportedProtocolError(f"broker {self._settings.address}: {text}")
        if text in {"Server unavailable", "Server busy", "Server shutting down"}:
            return BrokerUnreachableError(f"broker {self._settings.address} answers {text!r}: try again later")
        who = f"user {self._settings.address.username!r}" if self._settings.address.username else "no user name given"
        return BrokerRefusedError(
            f"broker {self._settings.address} refused client {self._settings.client_id!r} ({text}; {who}): "
            "check user name and password in the broker URL, and the broker's ACL"
        )
