"""Artifacts over HTTP: static files with ranges, from one folder, read-only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from broker_server.errors import ConfigError
from broker_server.naming import said_of
from broker_server.serving.services.gate import BACKLOG, MAX_REQUEST_BYTES, Gate, guarded_by, max_connections
from broker_server.serving.services.ports import check_port

logger = logging.getLogger(__name__)

NOT_FOUND: Final = 404
RANGE_NOT_SATISFIABLE: Final = 416
ONE_RANGE: Final = re.compile(r"bytes=([0-9]{1,15}-[0-9]{0,15}|-[0-9]{1,15})")
"""A request for one range, as after a cut download; many ranges in one request could make a large answer."""

SHUTDOWN_S: Final = 3
"""Time for answers under way when the server is told to end, seconds; devices continue later with a range."""

IMMUTABLE: Final = "public, max-age=31536000, immutable"
"""Files never change under their digest, so caches on the way may keep them."""


def make_app(directory: Path, gate: Gate | None = None) -> Starlette:
    """An application that serves ``directory/<folder>/<file>`` and nothing else; GET and HEAD, one range at a time.

    Args:
        directory: folder of artifacts.
        gate: watched over while the application runs, where it is served with one.

    Raises:
        ConfigError: there is no such directory.
    """
    if not directory.is_dir():
        msg = f"{directory} is not a directory: expected a folder of artifacts, each in a folder named by its digest"
        raise ConfigError(msg)
    root = directory.resolve()

    async def serve(request: Request) -> Response:
        path = resolve(root, request.path_params["folder"], request.path_params["name"])
        if path is None:
            raise HTTPException(NOT_FOUND)
        wanted = request.headers.get("range")
        if wanted is not None and ONE_RANGE.fullmatch(wanted) is None:
            raise HTTPException(RANGE_NOT_SATISFIABLE, "expected one range of bytes, such as bytes=1000-")
        return FileResponse(path, media_type="application/octet-stream", headers={"Cache-Control": IMMUTABLE})

    @contextlib.asynccontextmanager
    async def watched(_app: Starlette) -> AsyncIterator[None]:
        watch = None if gate is None else asyncio.create_task(gate.watch())
        yield
        if watch is not None:
            watch.cancel()

    routes = [Route("/{folder:str}/{name:str}", serve, methods=["GET", "HEAD"])]
    return Starlette(routes=routes, lifespan=watched)


def resolve(root: Path, folder: str, name: str) -> Path | None:
    """The requested file; None for anything but a plain file two levels below ``root``.

    Names that start with a dot are refused: they are unfinished files, or an attempt to leave the folder. Links that
    lead out of the folder are refused too.
    """
    if any(part.startswith(".") or "/" in part or "\\" in part or "\0" in part for part in (folder, name)):
        return None
    path = root / folder / name
    try:
        is_inside = path.resolve(strict=True).is_relative_to(root)
    except OSError:
        return None
    return path if is_inside and path.is_file() else None


def serve_artifacts(directory: Path, host: str, port: int) -> None:
    """Serve artifacts in this process until it is ended.

    Raises:
        ConfigError: no such directory, or an impossible address.
        PortTakenError: the port is in use.
    """
    gate = Gate(max_connections(), time.monotonic)
    app = make_app(directory, gate)
    with said_of("port"):
        check_port(host, port)
    logger.info("artifacts in %s on http://%s:%d/", directory, host, port)
    with contextlib.suppress(KeyboardInterrupt):  # the server has already shut down
        uvicorn.Server(server_config(app, gate, host=host, port=port)).run()


def server_config(app: Starlette, gate: Gate, *, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """Return uvicorn's configuration for the application, with each connection through the gate."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=guarded_by(gate),
        loop="asyncio",
        ws="none",
        backlog=BACKLOG,
        headers=[("Connection", "close")],
        h11_max_incomplete_event_size=MAX_REQUEST_BYTES,
        timeout_graceful_shutdown=SHUTDOWN_S,
        log_level="error",  # a warning for each malformed request would let anybody fill the log
        access_log=False,
        server_header=False,
    )
