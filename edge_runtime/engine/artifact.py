"""An artifact on disk: opened, checked, its base weights memory-mapped.

This module reads the safetensors layout directly (eight bytes of header length, a JSON header, raw little-endian data),
so arrays are views of the memory map. The base weights use page cache, which the system may drop, and are never in
memory twice.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.engine.errors import ArtifactCorruptedError
from edge_runtime.engine.frozen import as_float32
from edge_runtime.errors import TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest, TensorSpec, decode_manifest, digest_of
from edge_runtime.formats.quantization import Quantized, stored_tensor
from edge_runtime.formats.tensors import decode_tensors
from edge_runtime.system.files import measure

_STORED: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}


class Artifact:
    """A directory with an exported model. Make it with :meth:`open`.

    Attributes:
        directory: folder of the files.
        manifest: description of the artifact.
        digest: SHA-256 of ``manifest.json``, the artifact's identity.
    """

    def __init__(self, directory: Path, manifest: Manifest, digest: str) -> None:
        self.directory = directory
        self.manifest = manifest
        self.digest = digest
        self._base: MappedTensors | None = None

    @classmethod
    def open(cls, directory: Path, *, verify: bool = True) -> Self:
        """Read the manifest of an artifact and check its files.

        Args:
            directory: folder with ``manifest.json`` and the files that it names.
            verify: whether size and SHA-256 of every file that a device needs are checked; False if the caller has
                just done so, for example after a checked download.

        Raises:
            ArtifactCorruptedError: a file is missing or does not match the manifest.
            ManifestError: the manifest is malformed.
            ArtifactVersionError: the artifact has another format version.
        """
        path = directory / names.MANIFEST_FILE
        try:
            with path.open("rb") as file:
                data = file.read(limits.MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            msg = (
                f"artifact {directory} has no readable {names.MANIFEST_FILE} ({error.strerror}): "
                "export or fetch it again"
            )
            raise ArtifactCorruptedError(msg) from error
        artifact = cls(directory, decode_manifest(data), digest_of(data))
        if verify:
            artifact.verify()
        return artifact

    def verify(self) -> None:
        """Check size and SHA-256 of every file that a device needs.

        Raises:
            ArtifactCorruptedError: names the first file that is missing or differs.
        """
        for name, ref in self.manifest.files.items():
            if not ref.on_device:
                continue
            size, digest = self._measure(name)
            if size != ref.size_bytes:
                msg = (
                    f"artifact file {self.directory / name} is {size} bytes, expected {ref.size_bytes}: "
                    "it is not complete; fetch it again"
                )
                raise ArtifactCorruptedError(msg, digest=self.digest)
            if digest != ref.digest:
                msg = (
                    f"artifact file {self.directory / name} has SHA-256 {digest[:12]}..., "
                    f"expected {ref.digest[:12]}...: it is corrupted; fetch it again"
                )
                raise ArtifactCorruptedError(msg, digest=self.digest)

    def path(self, name: str) -> Path:
        """Path of a file of the artifact.

        Raises:
            ArtifactCorruptedError: the manifest does not name the file.
        """
        if name not in self.manifest.files:
            msg = f"artifact {self.directory} has no {name}; it has {', '.join(sorted(self.manifest.files))}"
            raise ArtifactCorruptedError(msg, digest=self.digest)
        return self.directory / name

    def initial(self) -> dict[str, npt.NDArray[np.float32]]:
        """Initial values of the dense tensors (the new classifier), float32 by name; empty if there are none.

        Raises:
            ArtifactCorruptedError: the file is malformed or its tensors do not match the manifest.
        """
        if not self.manifest.dense:
            return {}
        path = self.path(names.INITIAL_FILE)
        try:
            tensors = decode_tensors(path.read_bytes())
        except (OSError, TensorError) as error:
            msg = f"artifact file {path} cannot be read: {error}"
            raise ArtifactCorruptedError(msg, digest=self.digest) from error
        for spec in self.manifest.dense:
            if spec.name not in tensors or tensors[spec.name].shape != spec.shape:
                msg = f"artifact file {path} lacks {spec.name!r} of shape {spec.shape}"
                raise ArtifactCorruptedError(msg, digest=self.digest)
        return {spec.name: tensors[spec.name] for spec in self.manifest.dense}

    def stored(self, spec: TensorSpec) -> npt.NDArray[np.generic] | Quantized:
        """A frozen weight as it is stored, of ``spec.dtype``: read-only views of the memory-mapped base blob.

        Raises:
            ArtifactCorruptedError: the blob is malformed, or has no such tensor of that shape and type.
        """
        if self._base is None:
            path = self.path(names.BASE_FILE)
            try:
                self._base = MappedTensors(path)
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                msg = f"artifact file {path} is not a usable safetensors file: {error}"
                raise ArtifactCorruptedError(msg, digest=self.digest) from error
        try:
            return stored_tensor(self._base.tensors, spec)
        except TensorError as error:
            msg = f"base weights of artifact {self.directory}: {error}; fetch it again"
            raise ArtifactCorruptedError(msg, digest=self.digest) from error

    def weight(self, spec: TensorSpec) -> npt.NDArray[np.float32]:
        """A frozen weight as float32; raises as :meth:`stored`."""
        return as_float32(self.stored(spec))

    def release(self) -> None:
        """Return the pages of the base weights to the system; views of the weights stay valid."""
        if self._base is not None:
            self._base.release()

    def _measure(self, name: str) -> tuple[int, str]:
        """See :func:`measure`."""
        try:
            return measure(self.directory / name)
        except OSError as error:
            msg = f"artifact file {self.directory / name} cannot be read ({error.strerror}): fetch the artifact again"
            raise ArtifactCorruptedError(msg, digest=self.digest) from error


class MappedTensors:
    """The tensors of a safetensors file (https://huggingface.co/docs/safetensors), memory-mapped.

    Attributes:
        tensors: read-only views by name; nothing is read until it is used.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a safetensors file, or holds a type other than F32, F16, I8 and U8.
        KeyError: an entry of the header lacks a field.
        TypeError: an entry of the header is not an object.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.tensors = _views(memoryview(self._map))

    def release(self) -> None:
        """Drop the pages from this process; a later access reads them again."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _views(mapped: memoryview) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays over the data of a safetensors file; :class:`MappedTensors` lists the errors."""
    header_bytes = int.from_bytes(mapped[:8], "little")
    if len(mapped) < 8 or header_bytes > min(limits.MAX_TENSOR_HEADER_BYTES, len(mapped) - 8):
        msg = f"header of {header_bytes} bytes announced in a file of {len(mapped)} bytes"
        raise ValueError(msg)
    header = json.loads(bytes(mapped[8 : 8 + header_bytes]))
    if not isinstance(header, dict):
        msg = "header is not an object"
        raise ValueError(msg)  # noqa: TRY004 - a malformed file, not a wrong argument
    data = mapped[8 + header_bytes :]
    views: dict[str, npt.NDArray[np.generic]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _STORED:
            msg = f"tensor {name!r} is of type {entry['dtype']}, expected one of {', '.join(_STORED)}"
            raise ValueError(msg)
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data):
            msg = f"tensor {name!r} lies at {begin}..{end} in {len(data)} bytes of data"
            raise ValueError(msg)
        views[name] = np.frombuffer(data[begin:end], _STORED[entry["dtype"]]).reshape(entry["shape"])
    return views
