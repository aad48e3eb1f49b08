"""Features on the device's disk: computed once for each example, artifact, plan and truncation.

There is one file for each combination of artifact, plan and truncation. It holds the digests of the examples, their
float32 features ``[N, H]``, and at its end a digest of the rest. A damaged file is removed, and its features are
computed again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.engine.dataset import Dataset
from edge_runtime.formats.manifest import digest_of
from edge_runtime.system.files import DiskFullError, write_atomically

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Known = dict[bytes, Array]
"""Features ``[H]`` by the digest of the example."""

MAX_FILES: Final = 4
"""Most files that are kept; the oldest are removed."""
MAX_BYTES: Final = 2**30
"""Largest size of all files together; a file that would exceed it is not kept."""

_DIGEST_BYTES: Final = 32
_SUFFIX: Final = ".features"


class FeatureStore:
    """The features of one artifact, plan and truncation.

    Args:
        directory: folder of the files; None = nothing is kept.
        artifact_digest: SHA-256 of the artifact's manifest.
        plan_digest: digest of the plan.
        max_length: tokens that examples are cut at.
        num_features: H.
    """

    def __init__(
        self, directory: Path | None, artifact_digest: str, plan_digest: str, max_length: int, num_features: int
    ) -> None:
        key = f"{artifact_digest} {plan_digest} {max_length} {num_features}"
        self._path = None if directory is None else directory / (digest_of(key.encode())[:32] + _SUFFIX)
        self._num_features = num_features

    def load(self) -> Known:
        """Return the known features: none if the file is missing or damaged; a damaged one is removed."""
        if self._path is None or not self._path.is_file():
            return {}
        try:
            data = self._path.read_bytes()
        except OSError as error:
            logger.warning("%s cannot be read, its features are computed again: %s", self._path, error)
            return {}
        size = _DIGEST_BYTES + 4 * self._num_features
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if len(body) % size or hashlib.sha256(body).digest() != digest:
            logger.warning("%s is damaged, its features are computed again", self._path)
            self._path.unlink(missing_ok=True)
            return {}
        count = len(body) // size
        features = np.frombuffer(body, np.float32, offset=count * _DIGEST_BYTES).reshape(count, -1)
        return {body[i * _DIGEST_BYTES : (i + 1) * _DIGEST_BYTES]: features[i] for i in range(count)}

    def save(self, known: Mapping[bytes, Array]) -> None:
        """Replace the stored features by these; if they do not fit, nothing is stored, and no error is raised."""
        if self._path is None or not known:
            return
        body = b"".join(known) + np.stack(list(known.values())).astype(np.float32).tobytes()
        if not self._make_room(len(body) + _DIGEST_BYTES):
            logger.warning("features of %d examples are not kept: more than %d bytes", len(known), MAX_BYTES)
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, body, hashlib.sha256(body).digest())
        except (DiskFullError, OSError) as error:
            logger.warning("features are not kept, and will be computed again: %s", error)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the oldest other files until ``num_bytes`` fit; False if they cannot fit."""
        if self._path is None or num_bytes > MAX_BYTES:
            return False
        others = [path for path in self._path.parent.glob(f"*{_SUFFIX}") if path != self._path]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = num_bytes
        for place, path in enumerate(others, start=1):
            total += path.stat().st_size
            if place >= MAX_FILES or total > MAX_BYTES:
                path.unlink(missing_ok=True)
        return True


def digests_of(dataset: Dataset) -> list[bytes]:
    """SHA-256 of the tokens of each example, after truncation."""
    cut = (dataset.tokens[a:b] for a, b in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True))
    return [hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).digest() for tokens in cut]
