"""Encrypted brokers, and files that make no sense."""

from __future__ import annotations

import dataclasses
import datetime as dt
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.link.errors import AddressError, BrokerRefusedError, BrokerUnreachableError
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What is said of a certificate that is not as it should be."""

    subject: str = "/CN=broker"
    alt_name: str = "IP:127.0.0.1"
    days: tuple[int, int] = (-1, 2)
    """First and last day that it is valid, counted from today."""
    is_known: bool = True
    """Whether the device trusts who signed it."""
    said: str
    step: str


WRONG = {
    "expired": Made(days=(-9, -2), said="certificate has expired", step="renew it; or this machine's clock is wrong"),
    "not yet valid": Made(days=(2, 9), said="certificate is not yet valid", step="clock may be behind, it says 20"),
    "name as CN only": Made(subject="/CN=127.0.0.1", alt_name="", said="mismatch", step="subjectAltName"),
    "another address": Made(alt_name="IP:127.0.0.2", said="not valid for '127.0.0.1'", step="subjectAltName"),
    "another name": Made(alt_name="DNS:broker.example", said="not valid for '127.0.0.1'", step="subjectAltName"),
    "unknown authority": Made(is_known=False, said="unable to get local issuer", step="--ca-file"),
}


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an authority of one's own: ``ca.pem``, ``ca.key``."""
    folder = tmp_path_factory.mktemp("authority")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    out = ("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"))
    openssl("req", "-x509", *key, *out, "-days", "3", "-subj", "/CN=Home CA")
    return folder


def signed(authority: Path, folder: Path, made: Made) -> tuple[Path, Path]:
    """A certificate and its key, signed by the authority."""
    cert, key, request, database = (folder / name for name in ("c.pem", "c.key", "c.csr", "index"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", *curve, "-keyout", str(key), "-out", str(request), "-subj", made.subject)
    database.write_text("")
    (folder / "serial").write_text("01\n")
    alt = f"[ext]\nsubjectAltName={made.alt_name}\n" if made.alt_name else "[ext]\nbasicConstraints=CA:FALSE\n"
    config = f"[ca]\ndefault_ca=d\n[d]\ndatabase={database}\nserial={folder / 'serial'}\nnew_certs_dir={folder}\n"
    config += f"default_md=sha256\npolicy=p\nx509_extensions=ext\n[p]\ncommonName=supplied\n{alt}"
    (folder / "ca.conf").write_text(config)
    now = dt.datetime.now(dt.UTC)
    first, last = ((now + dt.timedelta(days=day)).strftime("%Y%m%d%H%M%SZ") for day in made.days)
    who = ("-cert", str(authority / "ca.pem"), "-keyfile", str(authority / "ca.key"))
    when = ("-startdate", first, "-enddate", last)
    openssl("ca", "-batch", "-config", str(folder / "ca.conf"), *who, *when, "-in", str(request), "-out", str(cert))
    return cert, key


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
