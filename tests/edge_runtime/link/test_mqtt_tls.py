"""Encrypted brokers, and files that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_runtime.link.errors import AddressError, BrokerRefusedError
from edge_runtime.link.mqtt import Connected, TlsFiles
from edge_runtime.wire.errors import ExitCode
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


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho leaves the socket to the collector
def test_tls_with_an_unknown_authority_is_refused(
    start_mosquitto: Any, make_link: MakeLink, certificate: tuple[Path, Path]
) -> None:
    broker = start_mosquitto(*tls_lines(*certificate))
    with pytest.raises(BrokerRefusedError, match=r"CERTIFICATE_VERIFY_FAILED.*--ca-file"):
        make_link(f"mqtts://127.0.0.1:{broker.port}").connect()


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
