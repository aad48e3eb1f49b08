"""Encrypted brokers, and files that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import ExitCode
from edge_runtime.link.errors import AddressError, BrokerRefusedError, BrokerUnreachableError
from edge_runtime.link.mqtt import Connected, TlsFiles
from tests.edge_runtime.link.certificates import WRONG, Made, signed
from tests.edge_runtime.link.links import MakeLink, next_event


def tls_lines(cert: Path, key: Path) -> tuple[str, ...]:
    return ("listener {port} 127.0.0.1", "allow_anonymous true", f"certfile {cert}", f"keyfile {key}")


def test_tls_with_a_known_authority_connects(
    start_mosquitto: Any, make_link: MakeLink, certificate: tuple[Path, Path]
) -> None:
    broker = start_mosquitto(*tls_lines(*certificate))
    link = make_link(f"mqtts://127.0.0.1:{broker.port}", tls=TlsFiles(ca_file=certificate[0]))
    link.connect()
    assert next_event(link, Connected)


@pytest.mark.parametrize("made", list(WRONG.values()), ids=list(WRONG))
def test_what_is_wrong_with_a_certificate_is_said(
    start_mosquitto: Any, make_link: MakeLink, authority: Path, tmp_path: Path, made: Made
) -> None:
    broker = start_mosquitto(*tls_lines(*signed(authority, tmp_path, made)))
    tls = TlsFiles(ca_file=authority / "ca.pem" if made.is_known else None)
    with pytest.raises(BrokerRefusedError) as caught:
        make_link(f"mqtts://127.0.0.1:{broker.port}", tls=tls).connect()
    line = str(caught.value)
    assert made.said in line
    assert made.step in line
    assert "_ssl.c" not in line
    assert "Unspecified" not in line


def test_a_certificate_that_signed_itself_is_said(
    start_mosquitto: Any, make_link: MakeLink, certificate: tuple[Path, Path]
) -> None:
    broker = start_mosquitto(*tls_lines(*certificate))
    with pytest.raises(BrokerRefusedError, match=r"self-signed certificate.*--ca-file"):
        make_link(f"mqtts://127.0.0.1:{broker.port}").connect()


def test_a_broker_that_asks_for_a_certificate_is_understood(
    start_mosquitto: Any, make_link: MakeLink, certificate: tuple[Path, Path]
) -> None:
    """TLS 1.3 says so after the handshake, when there is no call any more that could fail."""
    broker = start_mosquitto(*tls_lines(*certificate), f"cafile {certificate[0]}", "require_certificate true")
    link = make_link(f"mqtts://127.0.0.1:{broker.port}", tls=TlsFiles(ca_file=certificate[0]))
    with pytest.raises(BrokerRefusedError, match="asks for a certificate of this machine: --cert-file and --key-file"):
        link.connect()


def test_a_port_without_tls_is_understood(mosquitto: Any, make_link: MakeLink) -> None:
    with pytest.raises(BrokerRefusedError, match=r"the port speaks no TLS; use mqtt://"):
        make_link(f"mqtts://127.0.0.1:{mosquitto.port}").connect()


def test_a_port_with_tls_is_understood(
    start_mosquitto: Any, make_link: MakeLink, certificate: tuple[Path, Path]
) -> None:
    broker = start_mosquitto(*tls_lines(*certificate))
    with pytest.raises(BrokerUnreachableError, match="speaks TLS on that port: use mqtts://"):
        make_link(broker.url).connect()


def test_a_websocket_without_tls_is_understood(websocket_broker: Any, make_link: MakeLink) -> None:
    with pytest.raises(BrokerRefusedError, match=r"the port speaks no TLS; use ws://"):
        make_link(f"wss://127.0.0.1:{websocket_broker.port}").connect()


def test_tls_files_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match=r"absent\.pem does not exist"):
        TlsFiles(ca_file=tmp_path / "absent.pem").context()


def test_a_key_without_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="--cert-file"):
        TlsFiles(key_file=tmp_path / "key.pem").context()


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
def test_files_that_would_do_nothing_are_refused(make_link: MakeLink, tmp_path: Path, scheme: str, name: str) -> None:
    with pytest.raises(AddressError, match=r"not encrypted.*file\.pem would do nothing: use mqtts://") as caught:
        make_link(f"{scheme}://127.0.0.1:1", tls=TlsFiles(**{name: tmp_path / "file.pem"}))
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    with pytest.raises(AddressError, match="PEM format"):
        TlsFiles(ca_file=path).context()
