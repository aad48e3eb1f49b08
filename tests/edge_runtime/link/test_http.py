from __future__ import annotations

import errno
import os
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import ExitCode, MessageError
from edge_runtime.link import http
from edge_runtime.link.errors import AddressError, ArtifactCorruptedError, ArtifactUnreachableError
from edge_runtime.system.files import DiskFullError
from tests.edge_runtime.link.site import (
    BODY,
    DIGEST,
    Pauses,
    Site,
    answer,
    corrupted,
    cut,
    endless,
    fetch,
    hang_up,
    no_ranges,
    no_ranges_cut,
    serve,
    status,
    whole,
    wrong_range,
)


@pytest.fixture
def tls_site(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serve(context) as plan:
        yield plan


def broken_tls(handler: BaseHTTPRequestHandler, start: int) -> None:
    """Half of the body as it should be, then bytes that are not a TLS record."""
    answer(handler, start, BODY, num_bytes=100_000)
    os.write(handler.connection.fileno(), b"no TLS record at all" * 10)


def garbage(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.close_connection = True
    handler.wfile.write(b"this is no HTTP\r\n\r\n")


def reset(handler: BaseHTTPRequestHandler, start: int) -> None:
    """A part of the body, then a reset in place of the end."""
    answer(handler, start, BODY, num_bytes=1000)
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    hang_up(handler, start)


def test_a_file_is_fetched(site: Site, tmp_path: Path) -> None:
    site.behaviours = [whole]
    seen: list[int] = []
    fetch(site, tmp_path / "f", on_progress=seen.append)
    assert (tmp_path / "f").read_bytes() == BODY
    assert sum(seen) == len(BODY)
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_cut_file_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.behaviours = [cut]
    fetch(site, tmp_path / "f", max_attempts=2)
    assert site.starts == [0, 100_000, 200_000]
    assert (tmp_path / "f").read_bytes() == BODY


def test_another_process_goes_on_where_the_first_stopped(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:250_000])
    site.behaviours = [whole]
    fetch(site, tmp_path / "f")
    assert site.starts == [250_000]
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_complete_part_file_needs_no_request(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY)
    site.behaviours = [status(500)]
    fetch(site, tmp_path / "f")
    assert site.starts == []


def test_a_server_without_ranges_sends_everything_again(site: Site, tmp_path: Path) -> None:
    site.behaviours = [no_ranges_cut, no_ranges]
    fetch(site, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_server_that_never_gets_further_is_given_up(site: Site, tmp_path: Path) -> None:
    site.behaviours = [no_ranges_cut]
    with pytest.raises(ArtifactUnreachableError, match="was cut after 100000 of 300000"):
        fetch(site, tmp_path / "f", max_attempts=3)
    assert site.starts == [0, 100_000, 100_000]


def test_a_wrong_range_is_not_appended(site: Site, tmp_path: Path) -> None:
    site.behaviours = [cut, wrong_range, whole]
    fetch(site, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_corrupted_file_is_fetched_once_more_from_zero(site: Site, tmp_path: Path) -> None:
    site.behaviours = [corrupted, whole]
    fetch(site, tmp_path / "f")
    assert site.starts == [0, 0]
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_file_that_stays_corrupted_is_an_error(site: Site, tmp_path: Path) -> None:
    site.behaviours = [corrupted]
    with pytest.raises(ArtifactCorruptedError, match="is not the file that the manifest names") as caught:
        fetch(site, tmp_path / "f")
    assert caught.value.exit_code == ExitCode.ARTIFACT_CORRUPTED
    assert site.starts == [0, 0]
    assert list(tmp_path.iterdir()) == []


def test_no_more_than_the_promised_bytes_are_written(site: Site, tmp_path: Path) -> None:
    site.behaviours = [endless]
    fetch(site, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_part_file_that_is_too_large_is_started_anew(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY + b"more")
    site.behaviours = [whole]
    fetch(site, tmp_path / "f")
    assert site.starts == [0]


def test_a_range_that_the_server_does_not_have_starts_from_zero(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:250_000])
    site.behaviours = [status(416), whole]
    fetch(site, tmp_path / "f")
    assert site.starts == [250_000, 0]


def test_a_busy_server_is_asked_again_with_growing_jittered_waits(site: Site, tmp_path: Path) -> None:
    site.behaviours = [status(503), hang_up, status(429), whole]
    pauses = fetch(site, tmp_path / "f", rng=random.Random(1))
    assert len(pauses.waits) == 3
    assert all(0 <= wait <= bound for wait, bound in zip(pauses.waits, (1, 2, 4), strict=True))


def test_a_connection_that_breaks_within_tls_is_tried_again(tls_site: Site, tmp_path: Path) -> None:
    tls_site.behaviours = [broken_tls, whole]
    fetch(tls_site, tmp_path / "f")
    assert tls_site.starts[0] == 0
    assert len(tls_site.starts) == 2
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_small_file_whose_tls_breaks_is_asked_for_again(tls_site: Site) -> None:
    tls_site.behaviours = [broken_tls, whole]
    assert http.fetch_small(tls_site.url, len(BODY), pause=Pauses()) == BODY


@pytest.mark.parametrize("behaviour", [garbage, reset], ids=["no HTTP", "reset"])
def test_a_connection_that_breaks_is_tried_again(
    site: Site, tmp_path: Path, behaviour: Callable[[BaseHTTPRequestHandler, int], None]
) -> None:
    site.behaviours = [behaviour, whole]
    fetch(site, tmp_path / "f")
    assert len(site.starts) == 2
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_fault_of_the_disk_is_not_one_of_the_network(site: Site, tmp_path: Path) -> None:
    """Trying again would not mend it."""
    site.behaviours = [whole]
    (tmp_path / "f.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        fetch(site, tmp_path / "f")
    assert len(site.starts) == 1


def test_a_missing_file_is_unreachable_at_once(site: Site, tmp_path: Path) -> None:
    site.behaviours = [status(404)]
    with pytest.raises(ArtifactUnreachableError, match="HTTP 404") as caught:
        fetch(site, tmp_path / "f")
    assert caught.value.exit_code == ExitCode.ARTIFACT_UNREACHABLE
    assert len(site.starts) == 1


def test_a_server_that_hangs_up_is_unreachable_after_all_attempts(site: Site, tmp_path: Path) -> None:
    site.behaviours = [hang_up]
    with pytest.raises(ArtifactUnreachableError):
        fetch(site, tmp_path / "f", max_attempts=4)
    assert len(site.starts) == 4


def test_progress_may_stop_a_download_and_the_part_file_stays(site: Site, tmp_path: Path) -> None:
    site.behaviours = [whole]

    def stop(_num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(site, tmp_path / "f", on_progress=stop)
    assert 0 < (tmp_path / "f.part").stat().st_size <= len(BODY)


def test_too_little_space_is_seen_before_anything_is_written(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="disk full"):
        fetch(site, tmp_path / "f", size_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []
    assert site.starts == []


def test_a_disk_that_fills_up_leaves_nothing(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.behaviours = [whole]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(http, "_copy", full)
    with pytest.raises(DiskFullError) as caught:
        fetch(site, tmp_path / "f")
    assert caught.value.exit_code == ExitCode.DISK_FULL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/f",
        "http://",
        "nothing",
        "http://[bad",
        "http://host:99999/",
        "http://host:port/",
        "http://two..dots/",
        f"http://{'a' * 64}/",
        "http://host/\u00fc/",
        "http://host/ blank/",
        "http://host/\x1b[2J/",
        "http://host/\nforged",
        "http://user:password@host/",
    ],
)
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="expected http"):
        http.download(url, tmp_path / "f", digest=DIGEST, size_bytes=1)


def test_a_small_file_is_read(site: Site) -> None:
    site.behaviours = [whole]
    assert http.fetch_small(site.url, len(BODY)) == BODY


def test_a_small_file_that_is_too_large_is_refused(site: Site) -> None:
    site.behaviours = [whole]
    with pytest.raises(MessageError, match="larger than 1000 bytes"):
        http.fetch_small(site.url, 1000)


def test_a_small_file_that_is_cut_is_asked_for_again(site: Site) -> None:
    site.behaviours = [cut, whole]
    assert http.fetch_small(site.url, len(BODY), pause=Pauses()) == BODY


def test_loopback_is_reached_past_a_proxy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.behaviours = [whole]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert http.fetch_small(site.url, len(BODY), max_attempts=1) == BODY


def test_an_unknown_host_is_unreachable() -> None:
    with pytest.raises(ArtifactUnreachableError, match="cannot be fetched"):
        http.fetch_small("http://127.0.0.1:9/manifest.json", 10, pause=Pauses(), max_attempts=2)


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5_000, "-1", "NaN", "1e3"], ids=lambda value: ascii(value)[:10])
def test_a_length_that_is_no_number_is_passed_over(site: Site, length: str) -> None:
    def odd(handler: BaseHTTPRequestHandler, _start: int) -> None:
        handler.close_connection = True
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        handler.wfile.write(head.encode("latin-1") + b"body")

    site.behaviours = [odd]
    assert http.fetch_small(site.url, 100, pause=lambda _: None) == b"body"
