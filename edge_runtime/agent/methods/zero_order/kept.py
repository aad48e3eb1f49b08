"""Files of zero-order tuning on a device: theta at the start of its last round, and progress of the round under way.

Two files, each written whole:

    start     SHA-256 of the rest (32 bytes) | length of the header (uint32, little-endian) | header (msgpack) | payload
    steps     SHA-256 of the rest (32 bytes) | msgpack

A file that is damaged or of another run is ignored: the payload is pulled, or the assignment begins anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import struct
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.bounds.fields import Digest, Name, Positive
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.formats.manifest import digest_of
from edge_runtime.system.files import DiskFullError, write_atomically

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

_START: Final = "start"
_STEPS: Final = "steps"
_LENGTH: Final = struct.Struct("<I")
_DIGEST_BYTES: Final = 32


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1] = 1
    run_id: Name
    round_number: Positive
    digest: Digest
    pull_rate: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Theta at the start of the last assignment, without the device's own steps."""

    run_id: str
    round_number: int
    digest: str
    """SHA-256 of the payload, hexadecimal."""
    pull_rate: float | None
    """Rate of the last pulled payload, bytes a second; None = not measured."""
    payload: bytes


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of an assignment: together with its payload, another process can resume from it."""

    version: Literal[1] = 1
    identity: str
    """Identity of its assignment: :func:`edge_runtime.agent.checkpoints.identity_of`."""
    scalars: bytes
    """Float32, little-endian, ``[steps done, num_outer, num_inner]``."""
    num_not_finite: Annotated[int, msgspec.Meta(ge=0)]
    losses: list[float]
    """Mean loss of every step, nats; NaN if none was finite."""
    step_times_s: list[float]
    before: EvaluationResult | None
    before_s: float
    paused_s: float


_headers = msgspec.msgpack.Decoder(_Header)
_steps = msgspec.msgpack.Decoder(Steps)


class Kept:
    """The two files.

    Args:
        directory: folder of the files; None = nothing is kept. Temporary files of interrupted writes are removed.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        for name in (_START, _STEPS):
            for path in [] if directory is None else directory.glob(f".{name}.*.part"):
                path.unlink(missing_ok=True)

    def save_start(self, start: Start) -> None:
        """Replace the stored start; if the write fails, none is stored, and no error is raised."""
        header = msgspec.msgpack.encode(
            _Header(
                run_id=start.run_id,
                round_number=start.round_number,
                digest=start.digest,
                pull_rate=start.pull_rate,
            )
        )
        self._write(_START, _LENGTH.pack(len(header)), header, start.payload)

    def load_start(self, run_id: str) -> Start | None:
        """Return the stored start of a run; None if there is none, or it is damaged."""
        if self._directory is None:
            return None
        path = self._directory / _START
        try:
            with path.open("rb") as file:
                expected, prefix = file.read(_DIGEST_BYTES), file.read(_LENGTH.size)
                (length,) = _LENGTH.unpack(prefix)
                encoded = file.read(min(length, limits.MAX_MESSAGE_BYTES))
                header = _headers.decode(encoded)
                if header.run_id != run_id:
                    return None
                payload = file.read()
        except FileNotFoundError:
            return None
        except (OSError, struct.error, msgspec.DecodeError, UnicodeDecodeError) as error:
            _drop(path, str(error))
            return None
        if _digest(prefix, encoded, payload) != expected or digest_of(payload) != header.digest:
            _drop(path, "it is not what was written")
            return None
        return Start(
            run_id=run_id,
            round_number=header.round_number,
            digest=header.digest,
            pull_rate=header.pull_rate,
            payload=payload,
        )

    def save_steps(self, steps: Steps) -> None:
        """Replace the stored steps; the earlier ones stay if the write fails."""
        self._write(_STEPS, msgspec.msgpack.encode(steps))

    def load_steps(self, identity: str) -> Steps | None:
        """Return the progress of an assignment; None if none is stored."""
        if self._directory is None:
            return None
        path = self._directory / _STEPS
        try:
            data = path.read_bytes()
            steps = _steps.decode(data[_DIGEST_BYTES:])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _drop(path, str(error))
            return None
        if _digest(data[_DIGEST_BYTES:]) != data[:_DIGEST_BYTES]:
            _drop(path, "it is not what was written")
            return None
        return steps if steps.identity == identity else None

    def _write(self, name: str, *parts: bytes) -> None:
        if self._directory is None:
            return
        try:
            write_atomically(self._directory / name, _digest(*parts), *parts)
        except (DiskFullError, OSError) as error:
            logger.warning("%s is not kept, work goes on: %s", self._directory / name, error)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _drop(path: Path, why: str) -> None:
    logger.warning("%s is damaged and of no use: %s", path, why)
    with contextlib.suppress(OSError):
        path.unlink()
