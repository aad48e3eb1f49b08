"""Artifacts on the device's disk, by digest: fetched once, resumed after a cut, checked before every use."""

from __future__ import annotations

import logging
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_runtime.engine.artifact import Artifact
from edge_runtime.link import http
from edge_runtime.link.errors import ArtifactCorruptedError
from edge_runtime.wire import limits, names
from edge_runtime.wire.files import write_atomically
from edge_runtime.wire.manifest import FileRef, Manifest, decode_manifest, digest_of

logger = logging.getLogger(__name__)

MAX_ARTIFACTS: Final = 2
"""Artifacts that stay on disk: the one in use and the one before."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
"""Names of folders that this cache made; what else lies there is not its own."""

Progress = Callable[[int, int], None]
"""Called with bytes that just arrived over HTTP and bytes that are still lacking; may raise to stop."""


class ArtifactCache:
    """The artifacts of one device.

    Args:
        directory: one folder per digest.
        pause: waits between attempts; may raise to stop.
    """

    def __init__(self, directory: Path, pause: Callable[[float], None]) -> None:
        self._directory = directory
        self._pause = pause

    def fetch(self, base_url: str, digest: str, on_progress: Progress) -> Artifact:
        """The artifact ``digest``, every file of it complete and checked; only what is lacking is downloaded.

        Args:
            base_url: URL of the folder that holds ``manifest.json``, with a slash at the end.
            digest: SHA-256 of the manifest.
            on_progress: see :data:`Progress`.

        Raises:
            AddressError: the URL cannot be used.
            ArtifactUnreachableError: HTTP fails after all attempts.
            ArtifactCorruptedError: the server's files are not what manifest and digest say.
            ArtifactVersionError: of another format version.
            ManifestError: the manifest is malformed.
            DiskFullError: there is no space.
        """
        folder = self._directory / digest
        folder.mkdir(exist_ok=True)
        manifest = self._manifest(folder, base_url, digest, on_progress)
        os.utime(folder)
        self._make_room_beside(folder)
        lacking = {
            name: ref for name, ref in manifest.files.items() if ref.on_device and not _is_whole(folder / name, ref)
        }
        remaining = sum(ref.size_bytes for ref in lacking.values())

        def count(num_bytes: int) -> None:
            nonlocal remaining
            remaining -= num_bytes
            on_progress(num_bytes, max(0, remaining))

        for name, ref in lacking.items():
            url = _url_of(base_url, name)
            path = folder / name
            http.download(url, path, digest=ref.digest, size_bytes=ref.size_bytes, on_progress=count, pause=self._pause)
        return Artifact.open(folder, verify=False)

    def _manifest(self, folder: Path, base_url: str, digest: str, on_progress: Progress) -> Manifest:
        path = folder / names.MANIFEST_FILE
        if path.exists():
            data = path.read_bytes()
            if digest_of(data) == digest:
                return decode_manifest(data)
            logger.warning("%s is not the manifest that it was; fetching it again", path)
        url = _url_of(base_url, names.MANIFEST_FILE)
        data = http.fetch_small(
            url, limits.MAX_MANIFEST_BYTES, on_progress=lambda num_bytes: on_progress(num_bytes, 0), pause=self._pause
        )
        if digest_of(data) != digest:
            # The error is published, so it does not say what was there: the server may be anybody's.
            logger.warning("%s: %d bytes of digest %s", url, len(data), digest_of(data))
            msg = (
                f"{url} does not have digest {digest[:12]}..., which the coordinator promised: "
                "check the artifact URL, or serve the artifact of this run"
            )
            raise ArtifactCorruptedError(msg, digest=digest)
        manifest = decode_manifest(data)
        write_atomically(path, data)
        return manifest

    def _make_room_beside(self, current: Path) -> None:
        """Remove the oldest other artifacts; which is older is told by the clock, which may have been set back."""
        found = (path for path in self._directory.iterdir() if _DIGEST.fullmatch(path.name) and path.is_dir())
        others = [path for path in found if path != current]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for folder in others[MAX_ARTIFACTS - 1 :]:
            logger.info("removing artifact %s, not used any more", folder.name[:12])
            shutil.rmtree(folder)


def _url_of(base_url: str, name: str) -> str:
    http.host_of(base_url)  # refuses what cannot be joined, too
    return urllib.parse.urljoin(base_url, urllib.parse.quote(name))


def _is_whole(path: Path, ref: FileRef) -> bool:
    """Whether a cached file is what the manifest says; a wrong one is removed."""
    if not path.exists():
        return False
    if path.stat().st_size == ref.size_bytes and http.digest_of_file(path) == ref.digest:
        return True
    logger.warning("cached file %s is corrupted; fetching it again", path)
    path.unlink()
    return False
