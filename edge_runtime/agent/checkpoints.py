"""The checkpoint of a device: training resumes from it after a power cut or kill -9 in the middle of an assignment.

The file has its own folder, because a power cut during a write leaves a partial file beside it. The coordinator sends
an assignment again after a reconnect (docs/wire.md). The device then resumes it if all inputs of its training are the
same (:func:`identity_of`), else training begins anew.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.engine.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from edge_runtime.engine.dataset import Dataset
from edge_runtime.engine.errors import CheckpointError
from edge_runtime.formats.manifest import digest_of
from edge_runtime.system.files import DiskFullError, write_atomically
from edge_runtime.wire.messages import Assignment
from edge_runtime.wire.work import Work

logger = logging.getLogger(__name__)

_FILE: Final = "assignment.checkpoint"


class Checkpoints:
    """Keeps the newest checkpoint of the assignment under way.

    Args:
        directory: folder of the file; temporary files of interrupted writes are removed, all others stay.
        every: steps between checkpoints; 0 = no checkpoint is written, and an earlier process's is removed.
    """

    def __init__(self, directory: Path, every: int) -> None:
        self.every = every
        self._path = directory / _FILE
        for path in directory.glob(f".{_FILE}.*.part"):
            if path.is_file():
                path.unlink()
        if not every:
            self.remove()

    def load(self, identity: str) -> Checkpoint | None:
        """The checkpoint of an assignment, None if there is none; a damaged or foreign checkpoint is removed.

        Args:
            identity: see :func:`identity_of`.
        """
        try:
            checkpoint = decode_checkpoint(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, CheckpointError) as error:
            logger.warning("dropping %s, work begins anew: %s", self._path, error)
            self.remove()
            return None
        if checkpoint.identity != identity:
            logger.warning("dropping the checkpoint of another assignment, which nobody waits for any more")
            self.remove()
            return None
        return checkpoint

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether to write a checkpoint after this step; False after the last step."""
        return bool(self.every) and step % self.every == 0 and step < num_steps

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; the earlier one stays if the new one cannot be written."""
        try:
            write_atomically(self._path, *encode_checkpoint(checkpoint))
        except (DiskFullError, OSError) as error:
            logger.warning("no checkpoint after step %d, training goes on: %s", checkpoint.state.num_steps, error)

    def remove(self) -> None:
        """Remove the checkpoint, because its update is stored or because it is useless."""
        self._path.unlink(missing_ok=True)


def identity_of(assignment: Assignment, work: Work, artifact_digest: str, dataset: Dataset) -> str:
    """Digest of all inputs of an assignment's training; the deadline and the mode of the engine are none of them.

    Args:
        assignment: the assignment.
        work: its work.
        artifact_digest: digest of the artifact that is trained.
        dataset: the examples to train on.
    """
    parts = (
        (assignment.key, work, None if assignment.payload is None else assignment.payload.digest),
        (artifact_digest, dataset.digest()),
    )
    return digest_of(msgspec.msgpack.encode(parts))
