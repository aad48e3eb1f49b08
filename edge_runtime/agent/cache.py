"""Artifacts on the device's disk, by digest: fetched once, resumed after a cut, checked before every use."""

from __future__ import annotations

import logging
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import DIGEST
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import names
from edge_runtime.formats.manifest import FileRef, Manifest, decode_manifest, digest_of
from edge_runtime.link import http
from edge_runtime.link.errors import ArtifactCorruptedError
from edge_runtime.system.files import DiskFullError, measure, write_atomically

logger = logging.getLogger(__name__)

MAX_ARTIFACTS: Final = 2
"""Artifacts that stay on disk: the one in use and the one before."""

"""Names of the folders that this cache makes; it leaves all other files in its directory alone."""

RESERVE_BYTES: Final = 16_000_000
"""Space that an artifact leaves free on the disk: for updates, and for the rest of the board."""

_USED_FILE: Final = ".used"
"""Empty file in the folder of an artifact that was used; its modification time is that of the last use."""

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
        """The artifact ``digest``, every file of it complete and checked; only missing parts are downloaded.

        Args:
            base_url: URL of the folder that holds ``manifest.json``, with a slash at the end.
            digest: SHA-256 of the manifest.
            on_progress: see :data:`Progress`.

        Raises:
            AddressError: the URL cannot be used.
            ArtifactUnreachableError: HTTP fails after all attempts.
            ArtifactCorruptedError: the server's files do not match manifest and digest.
            ArtifactVersionError: the artifact has another format version.
            ManifestError: the manifest is malformed.
            DiskFullError: there is no space.
        """
        folder = self._directory / digest
        manifest = self._manifest(folder, base_url, digest, on_progress)
        os.utime(folder)
        self._make_room_beside(folder)
        lacking = {
            name: ref for name, ref in manifest.files.items() if ref.on_device and not _is_whole(folder / name, ref)
        }
        remaining = sum(ref.size_bytes for ref in lacking.values())
        _check_space(folder, lacking)

        def count(num_bytes: int) -> None:
            nonlocal remaining
            remaining -= num_bytes
            on_progress(num_bytes, max(0, remaining))

        for name, ref in lacking.items():
            url = _url_of(base_url, name)
            path = folder / name
            http.download(url, path, digest=ref.digest, size_bytes=ref.size_bytes, on_progress=count, pause=self._pause)
        return Artifact.open(folder, verify=False)

    def used(self, digest: str) -> None:
        """Note that an artifact was used; artifacts that never were are the first to be removed."""
        (self._directory / digest / _USED_FILE).touch()

    def _manifest(self, folder: Path, base_url: str, digest: str, on_progress: Progress) -> Manifest:
        path = folder / names.MANIFEST_FILE
        if path.exists():
            data = path.read_bytes()
            if digest_of(data) == digest:
                return decode_manifest(data)
            logger.warning("manifest %s was changed; fetching it again", path)
        url = _url_of(base_url, names.MANIFEST_FILE)
        data = http.fetch_small(
            url, limits.MAX_MANIFEST_BYTES, on_progress=lambda num_bytes: on_progress(num_bytes, 0), pause=self._pause
        )
        if digest_of(data) != digest:
            # The error is published, so it must not quote the answer: any server may have sent it.
            logger.warning("%s: %d bytes of digest %s", url, len(data), digest_of(data))
            msg = (
                f"{url} does not have digest {digest[:12]}..., which the coordinator promised: "
                "check the artifact URL, or serve the artifact of this run"
            )
            raise ArtifactCorruptedError(msg, digest=digest)
        manifest = decode_manifest(data)
        folder.mkdir(exist_ok=True)  # only now, so that an artifact that is not there leaves no folder
        write_atomically(path, data)
        return manifest

    def _make_room_beside(self, current: Path) -> None:
        """Remove other artifacts: first those that were never used, then those with the oldest last use.

        The order of use follows the clock, which may have been set back.
        """
        found = (path for path in self._directory.iterdir() if re.fullmatch(DIGEST, path.name) and path.is_dir())
        others = [path for path in found if path != current]
        others.sort(key=_last_use, reverse=True)
        for folder in others[MAX_ARTIFACTS - 1 :]:
            logger.info("removing artifact %s, not used any more", folder.name[:12])
            shutil.rmtree(folder)


def _url_of(base_url: str, name: str) -> str:
    http.host_of(base_url)  # also refuses a URL that cannot be joined
    return urllib.parse.urljoin(base_url, urllib.parse.quote(name))


def _last_use(folder: Path) -> tuple[bool, int]:
    """Sort key of artifacts: whether it was ever used, and when it was last used or, if never, fetched."""
    marker = folder / _USED_FILE
    is_used = marker.exists()
    return is_used, (marker if is_used else folder).stat().st_mtime_ns


def _check_space(folder: Path, lacking: Mapping[str, FileRef]) -> None:
    parts = (folder / (name + http.PART_SUFFIX) for name in lacking)
    needed = sum(ref.size_bytes for ref in lacking.values()) - sum(p.stat().st_size for p in parts if p.exists())
    free = shutil.disk_usage(folder).free
    if lacking and needed + RESERVE_BYTES > free:
        msg = (
            f"disk full: the artifact needs {needed / 1e6:.1f} MB more in {folder.parent}, and "
            f"{RESERVE_BYTES / 1e6:.0f} MB must stay free, but only {free / 1e6:.1f} MB are free: free some space"
        )
        raise DiskFullError(msg)


def _is_whole(path: Path, ref: FileRef) -> bool:
    """Return whether a cached file matches the manifest; remove a wrong one."""
    if not path.exists():
        return False
    if path.stat().st_size == ref.size_bytes and measure(path) == (ref.size_bytes, ref.digest):
        return True
    logger.warning("cached file %s is corrupted; fetching it again", path)
    path.unlink()
    return False
