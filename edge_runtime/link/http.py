"""The door to HTTP: large files, resumed after a cut and checked by digest. Standard library only.

The sender of a URL need not own the network of this machine. So redirects are refused, and answers of servers are never
reported: an error holds the URL, the status and the kind of fault, but no text of the answer.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import os
import random
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, Final, NoReturn

from edge_runtime.errors import MessageError
from edge_runtime.link import backoff, causes
from edge_runtime.link.errors import AddressError, ArtifactCorruptedError, ArtifactUnreachableError, LinkError
from edge_runtime.system.files import DiskFullError, measure, raise_if_disk_full, sync_directory

logger = logging.getLogger(__name__)

BLOCK_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 30.0
"""Silence after which a connection counts as dead."""
MAX_ATTEMPTS: Final = 6
"""Attempts in a row without a new byte after which the server counts as unreachable."""
PART_SUFFIX: Final = ".part"
LARGEST_WAIT_S: Final = 20.0
NO_HTTP: Final = "what answers does not speak HTTP as it should ({})"
LOOPBACK: Final = {"127.0.0.1", "::1", "localhost"}
"""Hosts that are always reached without a proxy."""

_TUNNEL: Final = re.compile(r"(Tunnel connection failed: \d+).*", re.DOTALL)

_LENGTH: Final = re.compile(r"[0-9]{1,18}")

_RETRIED_STATUS: Final = {408, 416, 425, 429, 500, 502, 503, 504}
"""Statuses after which another attempt is made (416: after the part file is deleted)."""

Progress = Callable[[int], None]
"""Called with the number of bytes that just arrived; may raise to stop a transfer (the part file stays)."""


class _CutError(LinkError):
    """An attempt ended early; the next attempt continues there."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses every redirect, and never reports its target."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> NoReturn:
        del msg, headers  # the server's text is never shown
        fp.close()
        refusal = (
            f"{req.full_url} answers with a redirect (HTTP {code}), which is not followed: "
            "let the coordinator's artifact_url name the artifact server itself"
        )
        raise ArtifactUnreachableError(refusal)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def download(  # noqa: PLR0913 - one file, how to check it, and the limits
    url: str,
    path: Path,
    *,
    digest: str,
    size_bytes: int,
    on_progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
    max_attempts: int = MAX_ATTEMPTS,
    pause: Callable[[float], None] = time.sleep,
    rng: random.Random | None = None,
) -> None:
    """Fetch ``url`` to ``path``; continue a partial file ``<path>.part`` of an earlier attempt or process.

    The file appears under its name only when size and SHA-256 are right. A wrong file is fetched once more from zero.

    Args:
        url: ``http`` or ``https``.
        path: path of the file; its directory exists.
        digest: SHA-256, 64 hexadecimal digits.
        size_bytes: exact size of the file.
        on_progress: see :data:`Progress`.
        timeout_s: silence after which a connection counts as dead.
        max_attempts: attempts in a row without a new byte before giving up.
        pause: waits the given seconds; a caller may pass a function that can be interrupted.
        rng: source of the jitter between attempts.

    Raises:
        AddressError: the URL is not http or https.
        ArtifactUnreachableError: no attempt brought new bytes, or the server does not have the file.
        ArtifactCorruptedError: twice in a row the file had another size or digest.
        DiskFullError: there is no space; the part file is deleted.
    """
    server = _Server(url, timeout_s, max_attempts, pause, rng)
    part = path.with_name(path.name + PART_SUFFIX)
    if part.exists() and part.stat().st_size > size_bytes:
        part.unlink()
    _check_space(part, size_bytes)
    for is_last in (False, True):
        try:
            server.complete(part, size_bytes, on_progress or (lambda _: None))
        except OSError as error:
            _raise_if_disk_full_without(part, error)
            raise
        if part.stat().st_size == size_bytes and measure(part) == (size_bytes, digest):
            part.replace(path)
            sync_directory(path.parent)
            return
        part.unlink()
        logger.warning("%s does not have digest %s%s", url, digest[:12], "" if is_last else "; fetching it once more")
    msg = f"{url} is not the file that the manifest names (SHA-256 {digest[:12]}...): export or copy the artifact again"
    raise ArtifactCorruptedError(msg, digest=digest)


def fetch_small(
    url: str,
    max_bytes: int,
    *,
    on_progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
    max_attempts: int = MAX_ATTEMPTS,
    pause: Callable[[float], None] = time.sleep,
    rng: random.Random | None = None,
) -> bytes:
    """The body of a small file. The arguments are those of :func:`download`.

    Raises:
        AddressError: the URL is not http or https.
        ArtifactUnreachableError: no attempt succeeded, or the server does not have the file.
        MessageError: the body is larger than ``max_bytes``.
    """
    server = _Server(url, timeout_s, max_attempts, pause, rng)
    body = server.read(max_bytes + 1, on_progress or (lambda _: None))
    if len(body) > max_bytes:
        msg = f"{url} is larger than {max_bytes} bytes and was refused: check the URL"
        raise MessageError(msg)
    return body


class _Server:
    """One URL, requested until it answers or the attempts are used up."""

    def __init__(
        self,
        url: str,
        timeout_s: float,
        max_attempts: int,
        pause: Callable[[float], None],
        rng: random.Random | None,
    ) -> None:
        direct = host_of(url)[0] in LOOPBACK
        proxies = [urllib.request.ProxyHandler({})] if direct else []
        self._opener = urllib.request.build_opener(_NoRedirects(), *proxies)
        self._url = url
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._pause = pause
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing

    def complete(self, part: Path, size_bytes: int, report: Progress) -> None:
        """Append to ``part`` until it has its size."""
        failures = 0
        while (have := _size(part)) < size_bytes:
            try:
                self._append(part, have, size_bytes, report)
            except (_CutError, urllib.error.HTTPError) as error:
                if (
                    isinstance(error, urllib.error.HTTPError)
                    and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                ):
                    part.unlink(missing_ok=True)  # the server's file is shorter than our part: start again
                failures = 1 if _size(part) > have else failures + 1
                self._wait_or_give_up(error, failures)

    def read(self, num_bytes: int, report: Progress) -> bytes:
        """The first ``num_bytes`` of the body, or all of it if it is shorter."""
        failures = 0
        while True:
            try:
                return self._read(num_bytes, report)
            except (_CutError, urllib.error.HTTPError) as error:
                failures += 1
                self._wait_or_give_up(error, failures)

    def _append(self, part: Path, have: int, size_bytes: int, report: Progress) -> None:
        """One attempt: request the missing bytes and append them, never more than the file's size."""
        with self._open(have) as response:
            resumed = response.status == HTTPStatus.PARTIAL_CONTENT
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                msg = f"answered another range than bytes {have}-"
                raise _CutError(msg)
            with part.open("ab" if resumed else "wb") as file:
                _copy(response, file, size_bytes - (have if resumed else 0), report)
                file.flush()
                os.fsync(file.fileno())
        if _size(part) < size_bytes:
            msg = f"was cut after {_size(part)} of {size_bytes} bytes"
            raise _CutError(msg)

    def _read(self, num_bytes: int, report: Progress) -> bytes:
        with self._open(0) as response:
            buffer = io.BytesIO()
            _copy(response, buffer, num_bytes, report)
            body, expected = buffer.getvalue(), response.headers.get("Content-Length", "")
        if _LENGTH.fullmatch(expected) and len(body) < min(num_bytes, int(expected)):
            msg = f"was cut after {len(body)} bytes"
            raise _CutError(msg)
        return body

    def _open(self, start: int) -> http.client.HTTPResponse:
        headers = {"Accept-Encoding": "identity", "User-Agent": "fedspine-edge"}
        if start:
            headers["Range"] = f"bytes={start}-"
        request = urllib.request.Request(self._url, headers=headers)  # noqa: S310 - host_of allows http(s) only
        with _cut_by_the_network():
            response = self._opener.open(request, timeout=self._timeout_s)
        if not isinstance(response, http.client.HTTPResponse):
            msg = "did not answer with HTTP"
            raise _CutError(msg)
        return response

    def _wait_or_give_up(self, error: Exception, failures: int) -> None:
        reason = str(error)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            reason = _status(error.code)
            if error.code not in _RETRIED_STATUS:
                failures = self._max_attempts
        if failures >= self._max_attempts:
            msg = (
                f"{self._url} cannot be fetched ({reason}): check that the artifact server runs and is reachable "
                "from here"
            )
            raise ArtifactUnreachableError(msg) from error
        delay_s = backoff.full_jitter(failures, self._rng, largest_s=LARGEST_WAIT_S)
        logger.warning("%s: %s; next attempt in %.1f s", self._url, reason, delay_s)
        self._pause(delay_s)


@contextlib.contextmanager
def _cut_by_the_network() -> Iterator[None]:
    """Translate faults of a connection, TLS included, to :class:`_CutError`; faults of files are not caught."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except http.client.RemoteDisconnected as error:
        msg = "the connection was closed without an answer"
        raise _CutError(msg) from error
    except http.client.BadStatusLine as error:
        is_tls = str(error.args[0]).startswith("\x15\x03")  # a TLS alert record
        msg = NO_HTTP.format("BadStatusLine")
        if is_tls:
            msg = "it speaks TLS on that port: its URL must begin with https://"
        raise _CutError(msg) from error
    except (http.client.HTTPException, ValueError) as error:  # their text quotes the answer, so only the type is named
        msg = NO_HTTP.format(type(error).__name__)
        raise _CutError(msg) from error
    except OSError as error:
        cause = error if isinstance(error, ssl.SSLError) else getattr(error, "reason", None)
        if isinstance(cause, ssl.SSLError):
            raise _CutError(causes.https_problem(cause)) from error
        reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        msg = _TUNNEL.sub(r"\1", reason)  # drops the proxy's own text after it
        raise _CutError(msg) from error


def _status(code: int) -> str:
    """A status with the standard's phrase for it, because the server's phrase is not trusted."""
    try:
        return f"HTTP {code} {HTTPStatus(code).phrase}"
    except ValueError:
        return f"HTTP {code}"


def _copy(response: http.client.HTTPResponse, file: IO[bytes], lacking: int, report: Progress) -> None:
    while lacking > 0:
        with _cut_by_the_network():
            block = response.read1(min(BLOCK_BYTES, lacking))
        if not block:
            return
        file.write(block)
        lacking -= len(block)
        report(len(block))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _raise_if_disk_full_without(part: Path, error: OSError) -> None:
    try:
        raise_if_disk_full(error, part)
    except DiskFullError:
        part.unlink(missing_ok=True)
        raise


def host_of(url: str) -> tuple[str, int]:
    """Host, in lower case, and port of a URL; the whole URL is checked.

    Raises:
        AddressError: the URL is not http or https, or its host, its port or its characters are invalid.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # fails for labels that are not 1 to 63 characters, as the socket would
        rest = url.partition("://")[2].partition(parts.netloc)[2]
        usable = parts.scheme in {"http", "https"} and bool(host) and "@" not in parts.netloc
        usable = usable and url.isprintable() and " " not in url and rest.isascii()
    except ValueError:
        usable = False
    if not usable:
        msg = f"artifact URL {url!r} is not usable: expected http://host/ or https://host/"
        raise AddressError(msg)
    return host, port or (443 if parts.scheme == "https" else 80)


def _check_space(part: Path, size_bytes: int) -> None:
    lacking = size_bytes - _size(part)
    free = shutil.disk_usage(part.parent).free
    if lacking > free:
        part.unlink(missing_ok=True)
        name = part.name.removesuffix(PART_SUFFIX)
        msg = f"disk full: {part.parent} has {free} bytes free, {name} needs {lacking}: free some space and start again"
        raise DiskFullError(msg)
