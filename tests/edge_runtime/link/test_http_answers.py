"""Limits of a server over HTTP: it cannot send a device elsewhere, or have its answers published."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from edge_runtime.link import http
from edge_runtime.link.errors import ArtifactUnreachableError
from tests.edge_runtime.link.site import Pauses, Site, fetch, serve, whole


def redirect(code: int, location: str) -> Callable[[BaseHTTPRequestHandler, int], None]:
    def respond(handler: BaseHTTPRequestHandler, _start: int) -> None:
        handler.send_response(code)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["other", "same", "file:///etc/hostname", "ftp://127.0.0.1:9/f", "", "//127.0.0.1:9"])
def test_a_redirect_is_refused_and_its_goal_is_never_asked(code: int, where: str, site: Site, tmp_path: Path) -> None:
    with serve() as other:
        other.behaviours = [whole]
        goal = {"other": other.url, "same": site.url.replace("base", "secret")}.get(where, where)
        site.behaviours = [redirect(code, goal)]
        with pytest.raises(ArtifactUnreachableError, match=rf"redirect \(HTTP {code}\).*artifact_url") as caught:
            fetch(site, tmp_path / "f")
        with pytest.raises(ArtifactUnreachableError, match="redirect"):
            http.fetch_small(site.url, 100)
    assert other.starts == []
    assert len(site.starts) == 2, "and it is not asked again"
    assert list(tmp_path.iterdir()) == []
    for told in (str(caught.value), repr(caught.value.__context__)):
        assert "secret" not in told
        assert other.url not in told


def secretive(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.send_response(403, "SECRET phrase")
    handler.send_header("X-Secret", "SECRET header")
    handler.end_headers()
    handler.wfile.write(b"SECRET body")


def own_status(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.wfile.write(b"HTTP/1.1 999 SECRET\r\nContent-Length: 0\r\n\r\n")


def other_protocol(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.wfile.write(b"SSH-2.0-SECRET\r\n")


def other_version(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.wfile.write(b"HTTP/7.SECRET 200 OK\r\n\r\n")


def bad_range(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes SECRET")
    handler.end_headers()


def bad_chunk(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n")


@pytest.mark.parametrize(
    "behaviour", [secretive, own_status, other_protocol, other_version, bad_range, bad_chunk], ids=lambda b: b.__name__
)
def test_an_error_holds_no_word_of_an_answer(
    behaviour: Callable[[BaseHTTPRequestHandler, int], None],
    site: Site,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.behaviours = [behaviour]
    with pytest.raises(ArtifactUnreachableError, match="cannot be fetched") as caught:
        fetch(site, tmp_path / "f", max_attempts=2)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in caplog.text
    if behaviour != bad_range:
        with pytest.raises(ArtifactUnreachableError) as caught:
            http.fetch_small(site.url, 100, max_attempts=2, pause=Pauses())
        assert "SECRET" not in str(caught.value)


def test_a_proxys_words_are_not_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", site.url)
    monkeypatch.setattr(BaseHTTPRequestHandler, "do_CONNECT", lambda h: secretive(h, 0), raising=False)
    with pytest.raises(ArtifactUnreachableError, match="Tunnel connection failed: 403") as caught:
        http.fetch_small("https://artifacts.example/manifest.json", 100, max_attempts=1)
    assert "SECRET" not in str(caught.value)


def test_a_small_file_that_drips_can_be_stopped(site: Site) -> None:
    def drip(handler: BaseHTTPRequestHandler, _start: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x")

    def stop(_num_bytes: int) -> None:
        raise KeyboardInterrupt

    site.behaviours = [drip]
    with pytest.raises(KeyboardInterrupt):
        http.fetch_small(site.url, 10**9, on_progress=stop)
