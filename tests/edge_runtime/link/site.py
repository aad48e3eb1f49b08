"""A HTTP server that does, request by request, what a test says; and a download from it that does not wait."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from edge_runtime.formats.manifest import digest_of
from edge_runtime.link import http

BODY = random.Random(0).randbytes(300_000)
DIGEST = digest_of(BODY)


@dataclasses.dataclass
class Site:
    """The server's behaviour, request by request; the last one goes on for ever."""

    url: str = ""
    behaviours: list[Callable[[BaseHTTPRequestHandler, int], None]] = dataclasses.field(default_factory=list)
    starts: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.starts.append(start)
        behaviour = self.behaviours[0]
        if len(self.behaviours) > 1:
            self.behaviours.pop(0)
        behaviour(handler, start)


def answer(handler: BaseHTTPRequestHandler, start: int, body: bytes, num_bytes: int | None = None) -> None:
    """A correct answer of a server with ranges, cut after ``num_bytes``."""
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    handler.wfile.write(body[start:] if num_bytes is None else body[start : start + num_bytes])


def whole(handler: BaseHTTPRequestHandler, start: int) -> None:
    answer(handler, start, BODY)


def cut(handler: BaseHTTPRequestHandler, start: int) -> None:
    answer(handler, start, BODY, num_bytes=100_000)


def no_ranges(handler: BaseHTTPRequestHandler, _start: int) -> None:
    answer(handler, 0, BODY)


def no_ranges_cut(handler: BaseHTTPRequestHandler, _start: int) -> None:
    answer(handler, 0, BODY, num_bytes=100_000)


def corrupted(handler: BaseHTTPRequestHandler, start: int) -> None:
    answer(handler, start, BODY[:-1] + bytes([BODY[-1] ^ 1]))


def endless(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(BODY + b"more")


def wrong_range(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
    handler.end_headers()


def status(code: int) -> Callable[[BaseHTTPRequestHandler, int], None]:
    def respond(handler: BaseHTTPRequestHandler, _start: int) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


def hang_up(handler: BaseHTTPRequestHandler, _start: int) -> None:
    handler.close_connection = True
    handler.connection.close()


@contextlib.contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    plan = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plan(self)

        def log_message(self, *_: Any) -> None:
            pass

        def finish(self) -> None:
            if not self.wfile.closed and self.connection.fileno() >= 0:
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    plan.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}/base.safetensors"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield plan
    server.shutdown()
    server.server_close()
    thread.join()


@dataclasses.dataclass
class Pauses:
    """Records the waits instead of waiting."""

    waits: list[float] = dataclasses.field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def fetch(site: Site, path: Path, **options: Any) -> Pauses:
    pauses = Pauses()
    http.download(site.url, path, **{"digest": DIGEST, "size_bytes": len(BODY), "pause": pauses, **options})
    return pauses
