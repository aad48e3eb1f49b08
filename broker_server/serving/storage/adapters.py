"""The global adapter of each round on disk: ``adapters/round-NNNN.safetensors`` and ``adapters/peft/``.

The same file holds the merged factors, under the names that they have on the wire, and the method's memory. If all
weights are tuned there is no adapter in PEFT's format: a whole checkpoint, ``adapters/whole/``, takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from broker_server.errors import StoreError
from broker_server.methods.aggregation import Aggregated
from broker_server.serving.storage.peft_folder import WHOLE_FOLDER, PeftFolder
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest, digest_of
from edge_runtime.formats.payload import check_payload, payload_of
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.run_directory import ADAPTERS_FOLDER, round_file
from edge_runtime.formats.seed_pool import pool_octets, pool_of
from edge_runtime.formats.tensors import check_digest, decode_with_octets, encode_tensors
from edge_runtime.system.files import make_directories, write_atomically

Adapter = dict[str, npt.NDArray[np.float32]]

PEFT_FOLDER = "peft"


def adapter_path(run_dir: Path, round_number: int) -> Path:
    """Return the path of the global adapter after a round."""
    return run_dir / ADAPTERS_FOLDER / round_file(round_number)


def peft_directory(run_dir: Path) -> Path:
    """Return the path of the last global adapter in PEFT's format."""
    return run_dir / ADAPTERS_FOLDER / PEFT_FOLDER


def whole_directory(run_dir: Path) -> Path | None:
    """Folder of the last model as a whole checkpoint; None if the run does not tune all weights."""
    directory = run_dir / ADAPTERS_FOLDER / WHOLE_FOLDER
    return directory if directory.is_dir() else None


class GlobalAdapters:
    """Global adapters of one run: full plan, one rank."""

    def __init__(
        self,
        run_dir: Path,
        manifest: Manifest,
        artifact_digest: str,
        *,
        rank: int,
        lora_scaling: float,
        peft_folder: PeftFolder | None = None,
        digests: Mapping[int, str] | None = None,
    ) -> None:
        """Name the files; nothing is read or written yet.

        Args:
            run_dir: run directory.
            manifest: of the artifact.
            artifact_digest: of the artifact.
            rank: of the adapters.
            lora_scaling: alpha / rank.
            peft_folder: folder of the last adapter in PEFT's format; None = ``adapters/peft/``, with an unknown base.
            digests: SHA-256 of the files of finished rounds, if known.
        """
        self._run_dir = run_dir
        self._manifest = manifest
        self._digest = artifact_digest
        self._peft_folder = peft_folder or PeftFolder(peft_directory(run_dir), manifest)
        self._digests = dict(digests or {})
        self.rank = rank
        self.lora_scaling = lora_scaling

    def write(self, round_number: int, state: Aggregated) -> None:
        """Write adapter, merged factors and memory of a round, and the sum of the first two in PEFT's format.

        Raises:
            StoreError: the round is finished, and its adapter was different.
            DiskFullError: there is no space.
        """
        path = adapter_path(self._run_dir, round_number)
        make_directories(path.parent)
        metadata = {
            "artifact_digest": self._digest,
            "rank": str(self.rank),
            "lora_scaling": repr(self.lora_scaling),
            "round_number": str(round_number),
        }
        tensors = dict(state.adapter)
        for module, (a, b) in state.merged.items():
            tensors[names.merged_a(module)], tensors[names.merged_b(module)] = a, b
        octets = {names.MEMORY_PREFIX + name: value for name, value in state.memory.items()}
        if state.pool is not None:
            octets[names.POOL] = pool_octets(state.pool)
        data = encode_tensors(tensors, metadata=metadata, octets=octets)
        if self._digests.get(round_number, digest_of(data)) != digest_of(data):
            msg = f"adapter {path} of a finished round cannot be made again: put it back from a copy"
            raise StoreError(msg, round_number=round_number)
        write_atomically(path, data)
        self._digests[round_number] = digest_of(data)
        self._write_peft(state)

    def forget(self, round_number: int) -> None:
        """Undo the last :meth:`write`: the adapter of the round before is the last one again.

        Raises:
            StoreError: the earlier adapter cannot be used.
            DiskFullError: there is no space.
        """
        self._write_peft(self.read(round_number - 1))
        adapter_path(self._run_dir, round_number).unlink(missing_ok=True)
        self._digests.pop(round_number, None)

    def keep(self, round_number: int) -> Aggregated:
        """Make the adapter of an earlier round the run's result: it takes the place of the last one in PEFT's format.

        Returns:
            That adapter.

        Raises:
            StoreError: it cannot be used.
            DiskFullError: there is no space.
        """
        state = self.read(round_number)
        self._write_peft(state)
        return state

    def exists(self, round_number: int) -> bool:
        """Return whether the adapter of a round was written."""
        return adapter_path(self._run_dir, round_number).is_file()

    def read(self, round_number: int) -> Aggregated:
        """Adapter, merged factors and memory of a round.

        Raises:
            StoreError: the file is missing, has changed, or is not an adapter of this run.
        """
        path = adapter_path(self._run_dir, round_number)
        try:
            data = path.read_bytes()
            check_digest(data, self._digests.get(round_number))
            tensors, octets = decode_with_octets(data)
            payload = payload_of(tensors)
            check_payload(self._manifest, Plan.full(self._manifest), self.rank, payload, is_update=False)
            pool = pool_of(octets.pop(names.POOL)) if names.POOL in octets else None
        except (OSError, TensorError) as error:
            msg = f"global adapter {path} cannot be used ({error}): start a new run, or put the file back"
            raise StoreError(msg, round_number=round_number) from error
        self._digests[round_number] = digest_of(data)
        memory = {name.removeprefix(names.MEMORY_PREFIX): value for name, value in octets.items()}
        return Aggregated(adapter=payload.adapter, merged=payload.merged, pool=pool, memory=memory)

    def digest(self, round_number: int) -> str | None:
        """SHA-256 of the file of a round that was read or written here; None = neither."""
        return self._digests.get(round_number)

    def _write_peft(self, state: Aggregated) -> None:
        if state.pool is None:
            self._peft_folder.write(state, self.rank, self.lora_scaling)
        else:
            self._peft_folder.write_whole(state, state.pool)
