"""Causes of a failed connection, and the next step: TLS, the wrong kind of port, the answer of a broker."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
from typing import Final

from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.link.address import BrokerAddress
from edge_runtime.link.errors import BrokerRefusedError, BrokerUnreachableError, LinkError

LOOK_S: Final = 2.0
"""Longest time of a check of a port's protocol, seconds."""

PLAIN_CONNECT: Final = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x1e\x00\x00"
"""CONNECT of MQTT 3.1.1 without a name and a password, which every broker answers."""

PLAIN_HTTP: Final = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

_CERTIFICATE_STEPS: Final = (
    ("expired", "renew it, or set the clock of this machine, which says {now}"),
    ("not yet valid", "this machine's clock may be behind, it says {now}: set it, or wait until that day"),
    ("mismatch", "subjectAltName must list it (the CN is not looked at): make it anew, or use a name that it lists"),
    ("self-signed certificate in", "name the authority that signed it: {trust}"),
    ("self-signed", "name that certificate itself: {trust}"),
    ("self signed", "name the authority that signed it: {trust}"),
    ("issuer", "name the authority that signed it: {trust}"),
    ("too weak", "have it made anew with a longer key or SHA-256"),
    ("too small", "have it made anew with a longer key"),
)  # fmt: skip
"""Next steps, by words in OpenSSL's message about a certificate."""

_ALERT_STEPS: Final = (
    ("certificate required", "it asks for a certificate of this machine: --cert-file and --key-file"),
    ("bad certificate", "it refuses the certificate of this machine: check --cert-file"),
    ("certificate expired", "the certificate of this machine has expired: renew --cert-file"),
    ("unknown ca", "it does not know the authority of this machine's certificate: check --cert-file"),
    ("certificate unknown", "it refuses the certificate of this machine: check --cert-file"),
    ("protocol version", "the two have no version of TLS in common: allow TLS 1.2 or 1.3 there"),
    ("handshake failure", "the two have no cipher in common, or it asks for a certificate: check --cert-file"),
)
"""Next steps, by words in the other side's TLS alert."""


def certificate_problem(error: ssl.SSLCertVerificationError, trust: str) -> str:
    """Return the fault of a certificate and the next step: ``why: step``.

    Args:
        error: error of the check.
        trust: option that names an authority, such as ``--ca-file``.
    """
    why = error.verify_message.rstrip(".") or "it cannot be verified"
    step = next((text for word, text in _CERTIFICATE_STEPS if word in why.lower()), "check {trust}, host name and port")
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{why}): {step.format(now=now, trust=trust)}"


def tls_problem(text: str) -> str | None:
    """Return the next step for an error of TLS in a text; None if the error is unknown."""
    lowered = text.lower().replace("_", " ")
    return next((step for word, step in _ALERT_STEPS if word in lowered), None)


def https_problem(error: ssl.SSLError) -> str:
    """Return the fault of an artifact server's TLS and the next step; the caller adds the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({certificate_problem(error, 'the variable SSL_CERT_FILE')}"
    reason = str(error.reason or "") or "the connection ended"
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST"}:
        return f"it speaks no TLS on that port ({reason}): its URL must begin with http://, or name the port of https"
    return f"TLS failed ({reason}): {tls_problem(reason) or 'check its certificate and its versions of TLS'}"


def of_handshake(address: BrokerAddress, error: OSError) -> LinkError:
    """The error for a failed TLS handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = certificate_problem(error, "--ca-file")
        return BrokerRefusedError(f"TLS with broker {address} failed, its certificate is refused ({problem}")
    if speaks_plain(address):
        plain = "ws" if address.is_websocket else "mqtt"
        return BrokerRefusedError(
            f"TLS with broker {address} failed: the port speaks no TLS; use {plain}://, or the port of {address.scheme}"
        )
    reason = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
    step = tls_problem(str(reason)) or "check --ca-file, host name and port, and that the port speaks TLS"
    return BrokerRefusedError(f"TLS with broker {address} failed ({reason}): {step}")


def of_silent_end(address: BrokerAddress, tls: ssl.SSLContext | None, why: str) -> LinkError:
    """The error for a connection that ended before the broker answered.

    Args:
        address: the broker.
        tls: context of an encrypted connection, else None.
        why: the socket's error; empty = the socket was closed without an error.
    """
    if tls is not None and tls_problem(why) is None:  # the socket may have missed an alert after the handshake
        why = _said_after_handshake(address, tls) or why
    if tls is not None and (step := tls_problem(why)) is not None:
        return BrokerRefusedError(f"broker {address} ended TLS ({why}): {step}")
    if not address.is_encrypted and speaks_tls(address):
        secure = "wss" if address.is_websocket else "mqtts"
        return BrokerUnreachableError(f"broker {address} speaks TLS on that port: use {secure}://")
    kind = "encrypted" if address.is_encrypted else "unencrypted"
    return BrokerUnreachableError(
        f"broker {address} closed the connection without an answer{f' ({why})' if why else ''}: check that the port "
        f"speaks {kind} MQTT, and whether it asks for a client certificate"
    )


def of_answer(address: BrokerAddress, client_id: str, reason: ReasonCode) -> LinkError:
    """The error for a CONNECT that was answered with a refusal."""
    text = str(reason)
    if text in {"Server unavailable", "Server busy", "Server shutting down", "Connection rate exceeded"}:
        return BrokerUnreachableError(f"broker {address} answers {text!r}: try again later")
    if "dentifier" in text:
        step = f"it does not take the client id of {len(client_id)} characters: shorten --fleet and --device-id"
    elif "uota" in text:
        step = "it lets no more clients in: raise its limit (mosquitto: max_connections), or wait"
    elif "acket too large" in text:
        step = "raise its limit (mosquitto: max_packet_size)"
    elif text in {"Use another server", "Server moved"}:
        step = "give the address of the other one"
    else:
        step = "check user name and password in the broker URL, and the broker's ACL"
    who = f"user {address.username!r}" if address.username else "no user name given"
    return BrokerRefusedError(f"broker {address} refused client {client_id!r} ({text}; {who}): {step}")


def refusal_step(reason: str) -> str:
    """Return the next step after a broker refused a message for ``reason``."""
    if "uthori" in reason:
        return "the broker's ACL does not let this user publish there; allow it"
    if "arge" in reason:
        return "raise the broker's limit (mosquitto: message_size_limit, max_packet_size)"
    if "uota" in reason:
        return "raise the broker's quota, or wait"
    return "see the broker's log, its ACL and its limits"


def speaks_tls(address: BrokerAddress) -> bool:
    """Return whether the port answers a TLS handshake; nothing secret is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether it is TLS; the connection is closed at once
    try:
        with (
            socket.create_connection((address.host, address.port), LOOK_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)
    except (OSError, ValueError):
        return False


def _said_after_handshake(address: BrokerAddress, tls: ssl.SSLContext) -> str:
    """Return the TLS error that the other side reports about our certificate, after the handshake; empty = none."""
    try:
        with (
            socket.create_connection((address.host, address.port), LOOK_S) as plain,
            tls.wrap_socket(plain, server_hostname=address.host) as encrypted,
        ):
            encrypted.settimeout(LOOK_S)
            encrypted.recv(1)
    except ssl.SSLError as error:
        return str(error.reason)
    except (OSError, ValueError):
        return ""
    return ""


def speaks_plain(address: BrokerAddress) -> bool:
    """Return whether the port answers MQTT (or HTTP, for a websocket) without TLS; nothing secret is sent."""
    asked, expected = (PLAIN_HTTP, b"HTTP/") if address.is_websocket else (PLAIN_CONNECT, b"\x20")
    with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), LOOK_S) as plain:
        plain.settimeout(LOOK_S)
        plain.sendall(asked)
        return plain.recv(len(expected)) == expected
    return False
