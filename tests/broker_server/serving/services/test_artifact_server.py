"""The artifact server: files two levels down, ranges, and nothing else."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_server.errors import ConfigError, PortTakenError
from broker_server.serving.services.artifacts import make_app, resolve, serve_artifacts

HOST = "127.0.0.1"
DIGEST = "a" * 64
CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "artifacts"
    (root / DIGEST).mkdir(parents=True)
    (root / DIGEST / "base.safetensors").write_bytes(CONTENT)
    (root / DIGEST / ".base.part").write_bytes(b"half-written")
    (root / DIGEST / "deeper").mkdir()
    (root / "loose").write_bytes(b"at the top")
    (root.parent / "secret").write_bytes(b"secret")
    (root / DIGEST / "link").symlink_to(root.parent / "secret")
    return root


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server in a process of its own, and its port."""
    with socket.create_server((HOST, 0)) as server:
        number: int = server.getsockname()[1]
    script = (
        "from pathlib import Path; from broker_server.serving.services.artifacts import serve_artifacts;"
        f"serve_artifacts(Path({str(folder)!r}), {HOST!r}, {number})"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            socket.create_connection((HOST, number), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    return process, number


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    process, number = start(folder)
    yield number
    process.terminate()
    process.wait(10)


def get(port: int, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def body(response: http.client.HTTPResponse) -> bytes:
    content: bytes = response.body  # type: ignore[attr-defined]
    return content


def test_whole_file(port: int) -> None:
    response = get(port, f"/{DIGEST}/base.safetensors")
    assert (response.status, body(response)) == (200, CONTENT)


def test_range_resumes_where_a_download_was_cut(port: int) -> None:
    response = get(port, f"/{DIGEST}/base.safetensors", Range="bytes=1000-")
    assert (response.status, body(response)) == (206, CONTENT[1000:])
    assert response.headers["Content-Range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"


def test_head_tells_the_size(port: int) -> None:
    response = get(port, f"/{DIGEST}/base.safetensors", method="HEAD")
    assert (response.status, body(response)) == (200, b"")
    assert int(response.headers["Content-Length"]) == len(CONTENT)


def test_nothing_can_be_written(port: int) -> None:
    assert get(port, f"/{DIGEST}/base.safetensors", method="PUT").status == 405
    assert get(port, f"/{DIGEST}/base.safetensors", method="DELETE").status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/loose",
        f"/{DIGEST}",
        f"/{DIGEST}/",
        f"/{DIGEST}/missing",
        f"/{DIGEST}/deeper",
        f"/{DIGEST}/.base.part",
        f"/{DIGEST}/link",
        "/../secret",
        "/..%2fsecret",
        f"/{DIGEST}/..%2f..%2fsecret",
        f"/{DIGEST}/../../secret",
        "/%2e%2e/secret",
        f"/{DIGEST}/%00",
        "//etc/passwd",
        "/%2fetc/passwd",
    ],
)
def test_everything_else_is_not_found(port: int, path: str) -> None:
    response = get(port, path)
    assert response.status == 404
    assert b"secret" not in body(response)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(parts=st.tuples(st.text(max_size=12), st.text(max_size=12)))
def test_no_name_leads_out(folder: Path, parts: tuple[str, str]) -> None:
    found = resolve(folder.resolve(), *parts)
    assert found is None or found.resolve().is_relative_to(folder.resolve())


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        make_app(tmp_path / "missing")


def test_it_ends_when_told_to_though_somebody_does_not_read(folder: Path) -> None:
    with (folder / DIGEST / "large").open("wb") as file:
        file.truncate(16 << 20)
    process, port = start(folder)
    with socket.create_connection((HOST, port)) as client:
        client.sendall(f"GET /{DIGEST}/large HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(4) == b"HTTP"
        process.terminate()
        process.wait(20)


def test_port_in_use(folder: Path) -> None:
    with socket.create_server((HOST, 0)) as server, pytest.raises(PortTakenError, match="in use"):
        serve_artifacts(folder, HOST, server.getsockname()[1])
