"""Links that are closed at the end, HTTP servers, and a certificate."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.link.mqtt import BrokerAddress, MqttLink
from tests.edge_runtime.link.certificates import openssl
from tests.edge_runtime.link.links import Jitter, MakeLink
from tests.edge_runtime.link.site import Site, serve


@pytest.fixture
def make_link() -> Iterator[MakeLink]:
    links: list[MqttLink] = []

    def make(url: str, client_id: str = "a", subscriptions: tuple[str, ...] = ("t/#",), **options: Any) -> MqttLink:
        settings: dict[str, Any] = {"will": None, "max_message_bytes": 4096, "rng": Jitter(), **options}
        link = MqttLink(BrokerAddress.parse(url), client_id=client_id, subscriptions=subscriptions, **settings)
        links.append(link)
        return link

    yield make
    for link in links:
        link.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as plan:
        yield plan


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an authority of one's own: ``ca.pem``, ``ca.key``."""
    folder = tmp_path_factory.mktemp("authority")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    out = ("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"))
    openssl("req", "-x509", *key, *out, "-days", "3", "-subj", "/CN=Home CA")
    return folder
