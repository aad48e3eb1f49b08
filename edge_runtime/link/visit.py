"""A single connection to a broker, which checks whether the broker answers and accepts the client."""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Iterator

from edge_runtime.bounds import limits
from edge_runtime.link.address import BrokerAddress, TlsFiles
from edge_runtime.link.mqtt import MqttLink
from edge_runtime.link.reflex import Reflex


@contextlib.contextmanager
def visit(address: BrokerAddress, tls: TlsFiles, rng: random.Random, reflex: Reflex | None = None) -> Iterator[None]:
    """Stay connected under a new client id inside the ``with`` block.

    Args:
        address: the broker, password included.
        tls: files for an encrypted address.
        rng: source of jitter.
        reflex: greeting and answer that the link sends without its owner.

    Raises:
        BrokerUnreachableError: nobody answers.
        BrokerRefusedError: the broker refuses.
        AddressError: a TLS file cannot be used.
    """
    link = MqttLink(
        address,
        client_id=f"fedspine-check-{secrets.token_hex(4)}",
        subscriptions=(),
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        tls=tls,
        reflex=reflex,
        rng=rng,
    )
    link.connect()
    try:
        yield
    finally:
        link.close()
