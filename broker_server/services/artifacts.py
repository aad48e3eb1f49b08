"""Artifacts over HTTP: static files with ranges, from one folder, read-only."""

from __future__ import annotations

import logging
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
from broker_server.services.ports import check_port

logger = logging.getLogger(__name__)

NOT_FOUND: Final = 404
IMMUTABLE: Final = "public, max-age=31536000, immutable"
"""Files never change under their digest, so caches on the way may keep them."""


def make_app(directory: Path) -> Starlette:
    """An application that serves ``directory/<folder>/<file>`` and nothing else; GET and HEAD, ranges included.

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
        return FileResponse(path, media_type="application/octet-stream", headers={"Cache-Control": IMMUTABLE})

    return Starlette(routes=[Route("/{folder:str}/{name:str}", serve, methods=["GET", "HEAD"])])


def resolve(root: Path, folder: str, name: str) -> Path | None:
    """The file that a request means; None for everything that is not a plain file two levels below ``root``.

    Names that start with a dot are files being written, or an attempt to climb out; a link that leads out is refused.
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
    app = make_app(directory)
    with said_of("port"):
        check_port(host, port)
    logger.info("artifacts in %s on http://%s:%d/", directory, host, port)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)
