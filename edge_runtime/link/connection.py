"""One connection to a broker, from CONNECT to its end. It is never reused: messages under way are lost at its end.

paho keeps unconfirmed messages of a client in memory and sends them again after a reconnect. Here every connection has
its own client, so no old message is sent twice and no queue outlives its connection; the protocol repeats unanswered
messages.
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
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.link import causes
from edge_runtime.link.address import BrokerAddress
from edge_runtime.link.endings import Ending
from edge_runtime.link.errors import BrokerRefusedError, BrokerUnreachableError, LinkError

logger = logging.getLogger(__name__)

KEEPALIVE_S: Final = 30
"""Keep-alive interval: the broker publishes the last will after one and a half times this silence."""

TOPIC_ALLOWANCE_BYTES: Final = 1024
"""Largest size of a PUBLISH packet without its payload: topic, properties, fixed header."""

MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
"""Most payload bytes that wait for the broker's confirmation; further messages are dropped."""

RECEIVE_MAXIMUM: Final = 64
"""Most QoS 1 messages that an MQTT 5 broker may have under way to this client."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that all connections of a link share."""

    address: BrokerAddress
    client_id: str
    subscriptions: tuple[str, ...]
    optional_subscriptions: tuple[str, ...] = ()
    """Topics that a broker may refuse."""
    will: tuple[str, bytes] | None
    max_message_bytes: int
    tls: ssl.SSLContext | None
    connect_timeout_s: float


MQTT5_ANSWER_S: Final = 3.0
"""Silence after which MQTT 5 counts as unsupported: amqtt misreads its CONNECT and waits for more bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions that a connection calls from its network thread; they must not block."""

    on_message: Callable[[str, bytes, Callable[[], None] | None], None]
    """Called for a message: topic, payload, and a function that acknowledges it (None = QoS 0, no acknowledgement)."""
    on_lost: Callable[[Ending], None]
    """Called at the end of a connection that was opened, at most once."""
    on_refused: Callable[[str, int, str], None]
    """Called when the broker refuses a message: topic, bytes, reason."""


class UnsupportedProtocolError(LinkError):
    """The broker does not support the tried protocol version; another version is tried next."""


class Connection:
    """One connection."""

    def __init__(self, settings: Settings, protocol: MQTTProtocolVersion, callbacks: Callbacks) -> None:
        self.protocol = protocol
        self._settings = settings
        self._tell = callbacks
        self._lock = threading.Lock()
        self._outcome: queue.Queue[LinkError | None] = queue.Queue()
        self._is_open = False
        self._is_over = False
        self._network_thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._unconfirmed: dict[int, tuple[str, int]] = {}
        self._confirmed_early: dict[int, ReasonCode] = {}
        self._handed: list[tuple[str, int]] = []
        """Messages that were handed to paho and have no number yet."""
        self._network_error = ""
        self._num_retained = 0
        self._unconfirmed_bytes = 0
        self._qos = 1
        self._client = self._make_client()

    @property
    def is_open(self) -> bool:
        """Return whether messages can be published."""
        return self._is_open and not self._is_over and not self.is_dead

    @property
    def is_dead(self) -> bool:
        """Return whether the network thread ended without a report: after an error in paho, or in a callback."""
        thread = self._network_thread
        return self._is_open and not self._is_over and thread is not None and not thread.is_alive()

    @property
    def is_all_confirmed(self) -> bool:
        """Return whether the broker has acknowledged every message."""
        return not self._unconfirmed and not self._handed

    @property
    def has_room(self) -> bool:
        """Return whether the connection is open, and at most half of the permitted bytes are unconfirmed."""
        return self._is_open and self._unconfirmed_bytes <= MAX_QUEUED_BYTES // 2

    @property
    def _topics(self) -> tuple[str, ...]:
        return (*self._settings.subscriptions, *self._settings.optional_subscriptions)

    def open(self) -> None:
        """Connect and subscribe; returns when the broker has confirmed both.

        Raises:
            BrokerUnreachableError: no MQTT broker answers in time.
            BrokerRefusedError: the broker refuses, or the check of its certificate fails.
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
            raise causes.of_handshake(address, error) from error
        except ConnectionResetError as error:
            if address.is_encrypted:
                raise causes.of_handshake(address, error) from error
            msg = f"broker {address} closed the connection at once ({error}): check that the port is the broker's"
            raise BrokerUnreachableError(msg) from error
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
        """Hand one message to the network thread; None if it was dropped (not connected, or too much unconfirmed)."""
        # Two threads call this: the owner's, and the network thread, which answers a greeting by itself.
        # The race: paho returns a message's number only when its publish returns. By then the broker's acknowledgement,
        # which has this number, may have arrived in the network thread. So a message is first in `_handed` (without a
        # number), then in `_unconfirmed` (by its number). An acknowledgement of an unknown number waits in
        # `_confirmed_early`.
        # The lock is not held while paho publishes. Paho calls back under locks of its own, and two threads that take
        # both locks in different orders would deadlock.
        # A message that does not fit is dropped, not queued: nobody waits here, and the protocol repeats a message that
        # was not answered. Bytes are counted before paho gets them, so that two threads together keep to the limit.
        with self._lock:
            if not self.is_open or self._unconfirmed_bytes + len(payload) > MAX_QUEUED_BYTES:
                return None
            self._unconfirmed_bytes += len(payload)
            self._handed.append((topic, len(payload)))
        info = self._client.publish(topic, payload, qos=self._qos)
        with self._lock:
            self._handed.remove((topic, len(payload)))
            # The connection may have ended since the check above. Then the message is dropped too.
            if info.rc in {MQTTErrorCode.MQTT_ERR_NO_CONN, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE}:
                self._unconfirmed_bytes -= len(payload)
                return None
            reason = self._confirmed_early.pop(info.mid, None)
            if reason is not None:
                self._unconfirmed_bytes -= len(payload)
            else:
                self._unconfirmed[info.mid] = (topic, len(payload))
        if reason is not None and reason.is_failure:
            self._tell.on_refused(topic, len(payload), str(reason))
        return info

    def close(self, timeout_s: float) -> None:
        """Say good-bye to the broker (no last will is published) and wait at most ``timeout_s`` for the end."""
        self._client.disconnect()
        if self._ended.wait(timeout_s) and threading.current_thread() is not self._network_thread:
            self._client.loop_stop()  # the network thread has ended
            self._client._reset_sockets()  # noqa: SLF001 - paho closes the pair that wakes its thread when collected only
        self._is_over = True

    def abandon(self) -> None:
        """Drop a connection that could not be opened."""
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
            manual_ack=True,
        )
        client.connect_timeout = settings.connect_timeout_s
        client.max_queued_messages_set(0)  # no limit by number: `publish` limits the bytes
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
        client.on_log = self._handle_log
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
            is_version = "rotocol version" in str(reason)
            problem = causes.of_answer(self._settings.address, self._settings.client_id, reason)
            self._outcome.put(UnsupportedProtocolError(str(reason)) if is_version else problem)
            return
        largest = getattr(properties, "MaximumPacketSize", None)
        needed = self._settings.max_message_bytes + TOPIC_ALLOWANCE_BYTES
        if largest is not None and largest < needed:
            msg = (
                f"broker {self._settings.address} accepts packets of at most {largest} bytes, but this needs {needed}: "
                "raise the broker's limit (mosquitto: max_packet_size), or use another broker"
            )
            self._outcome.put(BrokerRefusedError(msg))
            return
        self._qos = min(1, getattr(properties, "MaximumQoS", 1))
        window = getattr(properties, "ReceiveMaximum", client.max_inflight_messages)
        # Paho sets this only before a connection, but the value comes with this answer. No message is on its way yet.
        client._max_inflight_messages = min(window, client.max_inflight_messages)  # noqa: SLF001
        if self._topics:
            self._subscribe(client)
        else:
            self._is_open = True
            self._outcome.put(None)

    def _subscribe(self, client: paho.Client) -> None:
        """Subscribe to the topics, without their retained messages, which may be old or somebody else's."""
        topics = self._topics
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            options = SubscribeOptions(qos=self._qos, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            client.subscribe([(topic, options) for topic in topics])
        else:
            client.subscribe([(topic, self._qos) for topic in topics])

    def _handle_subscribe(
        self, _client: paho.Client, _userdata: object, _mid: int, reasons: Sequence[ReasonCode], _properties: object
    ) -> None:
        for topic, reason in zip(self._topics, reasons, strict=False):
            if reason.is_failure and topic in self._settings.optional_subscriptions:
                logger.info("broker %s does not let this client read %s (%s)", self._settings.address, topic, reason)
            elif reason.is_failure:
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
        with self._lock:
            message = self._unconfirmed.pop(mid, None)
            if message is None:
                self._confirmed_early[mid] = reason
                return
            self._unconfirmed_bytes -= message[1]
        if reason.is_failure:
            self._tell.on_refused(*message, str(reason))

    def _handle_message(self, client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        if self._is_over:
            return

        def acknowledge() -> None:
            client.ack(message.mid, message.qos)

        try:
            topic = message.topic
        except UnicodeDecodeError:
            logger.warning("dropped a message whose topic is not UTF-8")
            acknowledge()
            return
        if message.retain:
            self._num_retained += 1
            if self._num_retained & (self._num_retained - 1) == 0:  # at 1, 2, 4, ..., because there may be many
                logger.warning(
                    "dropped a retained message on %r (%d so far): clear it there", topic, self._num_retained
                )
            acknowledge()
            return
        self._tell.on_message(topic, bytes(message.payload), acknowledge if message.qos else None)

    def _handle_log(self, _client: paho.Client, _userdata: object, level: int, text: str) -> None:
        """Keep the socket's error, because paho only passes on "Unspecified error"."""
        if level == LogLevel.MQTT_LOG_ERR and " on socket: " in text:
            self._network_error = text.partition(" on socket: ")[2]

    def _handle_disconnect(self, *arguments: Any) -> None:  # noqa: ANN401 - paho passes five, one of them matters
        flags, reason = arguments[2:4]
        is_by_broker: bool = flags.is_disconnect_packet_from_server
        was_open, self._is_open = self._is_open, False
        self._ended.set()
        if not was_open:
            self._outcome.put(self._end_before_answer())
        elif not self._is_over:
            self._is_over = True
            with self._lock:
                # The oldest unconfirmed message, or the one that is being handed over, may be the reason for the end.
                unconfirmed = next(iter((*self._unconfirmed.values(), *self._handed)), None)
            code = reason.value if is_by_broker else None
            self._tell.on_lost(Ending(reason=self._words(reason, code), code=code, unconfirmed=unconfirmed))

    def _words(self, reason: ReasonCode, code: int | None) -> str:
        """Return the reason why an open connection ended."""
        if code is not None:
            return f"the broker ended it: {reason}"
        if str(reason) != "Unspecified error":
            return str(reason)
        step = causes.tls_problem(self._network_error)
        error = self._network_error or "closed by the other side without a reason"
        return f"{error}: {step}" if step else error

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
        if self.protocol == MQTTProtocolVersion.MQTTv5 and causes.tls_problem(self._network_error) is None:
            return UnsupportedProtocolError(f"broker {address} closed the connection on MQTT 5")
        return causes.of_silent_end(address, self._settings.tls, self._network_error)
