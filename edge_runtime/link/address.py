"""The address of a broker, and the credentials for it."""

from __future__ import annotations

import dataclasses
import logging
import os
import ssl
import stat
import urllib.parse
from pathlib import Path
from typing import Final, Self

from edge_runtime.link.errors import AddressError

logger = logging.getLogger(__name__)

DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
"""Default port by scheme; ``mqtts`` and ``wss`` are encrypted."""

DEFAULT_WEBSOCKET_PATH: Final = "/mqtt"

PASSWORD_VARIABLE: Final = "FEDSPINE_BROKER_PASSWORD"  # noqa: S105 - the name of the variable, not a password
"""Environment variable with the broker's password, used by all processes if the URL has none."""


MAX_PASSWORD_BYTES: Final = 4096
"""Largest file that is read as a password file."""


def password_shows(where: str) -> str:
    """Return the warning about a password in a URL on a command line.

    Args:
        where: the option.
    """
    return (
        f"every user of this machine can see the password in {where} while the command runs: "
        f"give --password-file, or {PASSWORD_VARIABLE}"
    )


def read_password(path: Path) -> str:
    """Read a password from the only line of a file. Errors never show the password.

    Raises:
        AddressError: the file cannot be read, or does not hold one line of text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PASSWORD_BYTES + 1)
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                logger.warning("every user of this machine can read %s: `chmod o-r` takes that away", path)
    except OSError as error:
        msg = f"password file {path} cannot be read ({error.strerror}): check --password-file and who may read it"
        raise AddressError(msg) from error
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = []
    if len(data) > MAX_PASSWORD_BYTES or len(lines) != 1 or not lines[0]:
        msg = f"password file {path} holds no password: expected one line of UTF-8, at most {MAX_PASSWORD_BYTES} bytes"
        raise AddressError(msg)
    return lines[0]


class _ClosingSocket(ssl.SSLSocket):
    """A socket that is closed when its handshake fails; paho would leave this to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as ssl.SSLSocket has it
        """Shake hands."""
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for an encrypted connection. Without ``ca_file`` the system's authorities are trusted."""

    ca_file: Path | None = None
    """Authority that signed the broker's certificate."""
    cert_file: Path | None = None
    """Certificate of this machine."""
    key_file: Path | None = None
    """Private key of the certificate; it may be in ``cert_file`` instead."""

    def context_for(self, address: BrokerAddress) -> ssl.SSLContext | None:
        """As :meth:`context`; None for an address that is not encrypted.

        Raises:
            AddressError: a file is missing or holds nothing usable, or files are given for an unencrypted address.
        """
        if address.is_encrypted:
            return self.context()
        for option, path in (("ca", self.ca_file), ("cert", self.cert_file), ("key", self.key_file)):
            if path is not None:
                msg = (
                    f"broker {address} is not encrypted, so the {option} file {path} would do nothing: "
                    "use mqtts:// or wss://, or leave the file out"
                )
                raise AddressError(msg)
        return None

    def context(self) -> ssl.SSLContext:
        """A client context that checks certificate and host name.

        Raises:
            AddressError: a file is missing or holds nothing usable.
        """
        if self.key_file is not None and self.cert_file is None:
            msg = f"TLS key file {self.key_file} needs a certificate: pass --cert-file too"
            raise AddressError(msg)
        for path in (self.ca_file, self.cert_file, self.key_file):
            if path is not None and not path.is_file():
                msg = f"TLS file {path} does not exist: check --ca-file, --cert-file and --key-file"
                raise AddressError(msg)
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.sslsocket_class = _ClosingSocket
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (ssl.SSLError, OSError) as error:
            msg = f"TLS files cannot be used ({error}): expected certificates and keys in PEM format"
            raise AddressError(msg) from error
        return context


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """One broker, from a URL such as ``mqtts://user@host:8883``."""

    scheme: str
    host: str
    port: int
    path: str = DEFAULT_WEBSOCKET_PATH
    """Path of the websocket; unused by ``mqtt`` and ``mqtts``."""
    username: str | None = dataclasses.field(default=None, repr=False)
    password: str | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse ``scheme://[user[:password]@]host[:port][/path]``, scheme one of mqtt, mqtts, ws, wss.

        Raises:
            AddressError: the URL does not have this form. The message never holds the password.

        >>> BrokerAddress.parse("mqtts://lab:secret@broker.example")
        BrokerAddress(scheme='mqtts', host='broker.example', port=8883, path='/mqtt')
        """
        expected = "expected mqtt://, mqtts://, ws:// or wss://, then [user[:password]@]host[:port]"
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
            host = parts.hostname
        except ValueError as error:
            msg = f"broker URL is malformed ({type(error).__name__}): {expected}"
            raise AddressError(msg) from error
        if parts.scheme not in DEFAULT_PORTS or not host or port == 0:
            shown = parts.scheme if "://" in url else "none"
            msg = f"broker URL has scheme {shown!r} and host {host!r}: {expected}"
            raise AddressError(msg)
        return cls(
            scheme=parts.scheme,
            host=host,
            port=port if port is not None else DEFAULT_PORTS[parts.scheme],
            path=parts.path if parts.path not in {"", "/"} else DEFAULT_WEBSOCKET_PATH,
            username=_unquoted(parts.username),
            password=_unquoted(parts.password),
        )

    def with_password(self, password: str | None) -> Self:
        """The same address with ``password`` if it has none; None changes nothing."""
        if password is None or self.password is not None:
            return self
        return dataclasses.replace(self, password=password)

    @property
    def is_encrypted(self) -> bool:
        """Return whether the connection uses TLS."""
        return self.scheme in {"mqtts", "wss"}

    @property
    def is_websocket(self) -> bool:
        """Return whether MQTT travels inside a websocket."""
        return self.scheme in {"ws", "wss"}

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def _unquoted(text: str | None) -> str | None:
    return None if text is None else urllib.parse.unquote(text)
