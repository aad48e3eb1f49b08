"""Ports that a server of this machine is about to listen on."""

from __future__ import annotations

import errno
import ipaddress
import socket

from broker_server.errors import ConfigError, PortTakenError

MAX_PORT = 65_535


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on, before anything is started.

    Raises:
        PortTakenError: another program listens on it, or this user may not.
        ConfigError: it is not a port, or ``host`` is not an address of this machine.
    """
    if not 1 <= port <= MAX_PORT:
        msg = f"port is {port}, expected 1 to {MAX_PORT}"
        raise ConfigError(msg)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            why = "is in use by another program" if error.errno == errno.EADDRINUSE else "may not be used by this user"
            msg = f"port {port} on {host} {why}: stop that program, or choose another port"
            raise PortTakenError(msg) from error
        msg = f"--host {host} cannot be listened on ({error.strerror or error}): expected an address of this machine"
        raise ConfigError(msg) from error


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone; False if it cannot be resolved."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
