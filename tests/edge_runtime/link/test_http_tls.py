"""An artifact server behind TLS: what is wrong with it is said as it is."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.link.errors import ArtifactUnreachableError
from edge_runtime.link.http import fetch_small
from tests.edge_runtime.link.certificates import WRONG, Made, signed

Serve = Callable[..., int]


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Handshakes fail here on purpose."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server, with a certificate or without; returns its port."""
    servers: list[http.server.HTTPServer] = []

    def start(certificate: tuple[Path, Path] | None = None) -> int:
        server = _Quiet(("127.0.0.1", 0), _Files)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fetch(url: str) -> bytes:
    return fetch_small(url, 10, max_attempts=1, timeout_s=5.0, pause=lambda _: None)


def test_a_certificate_that_is_known_is_used(
    serve: Serve, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    port = serve(signed(authority, tmp_path, Made(said="", step="")))
    assert fetch(f"https://127.0.0.1:{port}/x") == b"ok"


@pytest.mark.parametrize("made", list(WRONG.values()), ids=list(WRONG))
def test_what_is_wrong_with_a_certificate_is_said(
    serve: Serve, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    if made.is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    port = serve(signed(authority, tmp_path, made))
    with pytest.raises(ArtifactUnreachableError) as caught:
        fetch(f"https://127.0.0.1:{port}/x")
    line = str(caught.value)
    assert made.said in line
    assert made.step.replace("--ca-file", "SSL_CERT_FILE") in line
    assert "_ssl.c" not in line


def test_a_port_without_tls_is_understood(serve: Serve) -> None:
    with pytest.raises(
        ArtifactUnreachableError, match=r"speaks no TLS on that port .*: its URL must begin with http://"
    ):
        fetch(f"https://127.0.0.1:{serve()}/x")
