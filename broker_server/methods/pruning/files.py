"""Importance on disk: current scores in ``importance.safetensors``, and one file a round if devices score units.

An interrupted round is aggregated again from the scores before it, so the scores of every round are kept:
``importance/round-NNNN.safetensors``, 0 = before training. All files hold the plan policy as metadata, so that every
reader makes the same plans as the run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker_server.errors import StoreError
from broker_server.methods.pruning.importance import magnitude_importance
from broker_server.methods.pruning.scores import Scores
from edge_runtime.engine.artifact import Artifact
from edge_runtime.errors import PlanError, TensorError
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.ranking import Importance, PlanPolicy, check_importance, from_tensors, to_tensors
from edge_runtime.formats.run_directory import IMPORTANCE_FILE, round_file
from edge_runtime.formats.tensors import check_digest, decode_tensors, encode_tensors
from edge_runtime.system.files import make_directories, write_atomically

logger = logging.getLogger(__name__)

IMPORTANCE_FOLDER: Final = "importance"


class ImportanceFiles:
    """The scores of one run."""

    def __init__(
        self,
        run_dir: Path,
        artifact: Artifact,
        policy: PlanPolicy,
        *,
        by_round: bool,
        digests: Mapping[int, str] | None = None,
    ) -> None:
        """Name the files; nothing is read or written yet.

        Args:
            run_dir: run directory.
            artifact: artifact of the run.
            policy: plan policy, written as metadata.
            by_round: whether scores change from round to round.
            digests: SHA-256 of the scores after finished rounds, if known.
        """
        self.digest: str | None = None
        """SHA-256 of the scores that were read or written last; None = none were."""
        self._digests = dict(digests or {})
        self._run_dir = run_dir
        self._artifact = artifact
        self._metadata = policy.to_metadata()
        self._by_round = by_round

    def open(self, round_number: int) -> Scores:
        """The scores after a round (0: magnitude of the base weights, computed and written the first time).

        Raises:
            StoreError: a file is missing, damaged, changed, or of another model.
            ArtifactCorruptedError: the base weights cannot be read.
        """
        current = self._run_dir / IMPORTANCE_FILE
        if not current.exists() and round_number == 0:
            scores = magnitude_importance(self._artifact.manifest, self._artifact.weight)
            logger.info("ranked %d units by magnitude", sum(s.size for s in scores.values()))
            self.write(0, scores)
            return scores
        return self._read(self._path(round_number) if self._by_round else current, self._digests.get(round_number))

    def write(self, round_number: int, scores: Importance) -> None:
        """Write the scores of a round, and the same as the current ones.

        Raises:
            DiskFullError: there is no space.
        """
        data = encode_tensors(dict(to_tensors(scores)), metadata=self._metadata)
        if self._by_round:
            path = self._path(round_number)
            make_directories(path.parent)
            write_atomically(path, data)
        write_atomically(self._run_dir / IMPORTANCE_FILE, data)
        self.digest = digest_of(data)

    def _path(self, round_number: int) -> Path:
        return self._run_dir / IMPORTANCE_FOLDER / round_file(round_number)

    def _read(self, path: Path, digest: str | None) -> Scores:
        try:
            data = path.read_bytes()
            check_digest(data, digest)
            scores = from_tensors(decode_tensors(data))
            check_importance(self._artifact.manifest, scores)
        except (OSError, TensorError, PlanError) as error:
            msg = (
                f"importance {path} cannot be used ({error}): plans would change; put the file back or start a new run"
            )
            raise StoreError(msg) from error
        self.digest = digest_of(data)
        return scores
