"""A broker without set-up: this process is replaced by mosquitto if that is installed, else it runs amqtt."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from typing import Final, Literal, NoReturn

from broker_server.errors import ConfigError, MissingExtraError
from broker_server.naming import said_of
from broker_server.serving.services.ports import check_port, is_loopback
from edge_runtime.bounds import limits
from edge_runtime.system.interpreter import missing

logger = logging.getLogger(__name__)

BrokerKind = Literal["mosquitto", "amqtt"]

SYSTEM_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin")
"""Folders where distributions install mosquitto, and which are not on every user's PATH."""

PACKET_ALLOWANCE_BYTES: Final = 4096
"""Room for topic and properties beside the payload of a message."""

MAX_QUEUED_MESSAGES: Final = 20_000
"""Messages that wait in mosquitto for one client; beyond its own 1,000, messages of a large fleet to the coordinator
are lost, and devices say them again after seconds."""
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""The same in bytes."""


def find_mosquitto() -> str | None:
    """Path of mosquitto, or None if it is not installed."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))


def find_broker(kind: str = "auto") -> BrokerKind:
    """The broker to run.

    Args:
        kind: ``mosquitto``, ``amqtt``, or ``auto``: mosquitto where it is installed, else amqtt.

    Raises:
        ConfigError: an unknown kind.
        MissingExtraError: mosquitto is wanted and not installed.
    """
    if kind == "auto":
        return "amqtt" if find_mosquitto() is None else "mosquitto"
    if kind == "mosquitto" and find_mosquitto() is None:
        msg = "mosquitto is not installed: install it with the system's package manager, or use amqtt"
        raise MissingExtraError(msg)
    if kind == "mosquitto":
        return "mosquitto"
    if kind == "amqtt":
        return "amqtt"
    msg = f"broker {kind!r} is not known, expected auto, mosquitto or amqtt"
    raise ConfigError(msg)


def mosquitto_config(host: str, port: int) -> str:
    """Configuration of an embedded mosquitto: one listener, nothing on disk, no message beyond the protocol's limit.

    It queues nothing for devices that are away, and only so much for those that read slowly: all is said again.
    """
    lines = [
        f"listener {port} {host}",
        "allow_anonymous true",
        "persistence false",
        f"message_size_limit {limits.MAX_MESSAGE_BYTES}",
        f"max_packet_size {limits.MAX_MESSAGE_BYTES + PACKET_ALLOWANCE_BYTES}",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    if os.geteuid() == 0:
        lines.append("user root")  # otherwise it would change to a user that may not exist here
    return "\n".join(lines) + "\n"


def run_broker(*, host: str, port: int, kind: str = "auto") -> None:
    """Run a broker in this process until it is ended.

    It needs no password: keep it on loopback, or on a network where every machine may take part.

    Raises:
        ConfigError: an unknown kind, an impossible address, or one that other machines reach while the broker is amqtt.
        PortTakenError: the port is in use.
        MissingExtraError: the broker is not installed.
    """
    chosen = find_broker(kind)
    with said_of("port"):
        check_port(host, port)
    if chosen == "amqtt" and not is_loopback(host):
        msg = (
            f"--host {host}: amqtt takes messages of any size, so it listens on 127.0.0.1 only; "
            "install mosquitto for boards (Debian: apt-get install mosquitto)"
        )
        raise ConfigError(msg)
    logger.info("%s listens on %s:%d", chosen, host, port)
    if chosen == "mosquitto":
        _become_mosquitto(host, port)
    asyncio.run(_serve_amqtt(host, port))


def _become_mosquitto(host: str, port: int) -> NoReturn:
    """Replace this process by mosquitto; its configuration is a file in memory, so that nothing is left behind."""
    descriptor = os.memfd_create("mosquitto.conf", 0)
    os.write(descriptor, mosquitto_config(host, port).encode())
    path = find_mosquitto() or "mosquitto"
    os.execv(path, [path, "-c", f"/proc/self/fd/{descriptor}"])  # noqa: S606 - becomes the broker, no shell


async def _serve_amqtt(host: str, port: int) -> None:
    try:
        from amqtt.broker import Broker  # noqa: PLC0415 - only where mosquitto is not used
    except ModuleNotFoundError as error:
        raise MissingExtraError(missing(error, "amqtt")) from error
    logging.getLogger("amqtt").setLevel(logging.WARNING)
    logging.getLogger("transitions").setLevel(logging.WARNING)
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()
