"""The tensors of an accepted update, read from its file one at a time: a round may have more of them than memory."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from broker_server.errors import StoreError

_DTYPES: Final[dict[str, np.dtype[np.floating]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}

Place = tuple[np.dtype[np.floating], tuple[int, ...], int]
"""Type, shape and offset in the file of a tensor."""


class StoredTensors(Mapping[str, npt.NDArray[np.float32]]):
    """Float32 arrays by name, each read anew when it is asked for. Make it with :meth:`of`."""

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self._path = path
        self._places = places

    @classmethod
    def of(cls, path: Path, blob: bytes) -> Self:
        """The tensors of a file that hold floats.

        Args:
            path: the file.
            blob: its content, which was checked (:func:`edge_runtime.formats.tensors.decode_tensors`) and may be let
                go.
        """
        (size,) = struct.unpack_from("<Q", blob)
        begin = 8 + size
        places: dict[str, Place] = {}
        header = json.loads(blob[8:begin])
        for name, entry in header.items():
            if entry.get("dtype") not in _DTYPES:  # metadata, or a tensor that is read as a whole
                continue
            places[name] = _DTYPES[entry["dtype"]], tuple(entry["shape"]), begin + int(entry["data_offsets"][0])
        return cls(path, places)

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        """Read a tensor.

        Raises:
            KeyError: there is none of that name.
            StoreError: the file has changed.
        """
        dtype, shape, offset = self._places[name]
        num_bytes = math.prod(shape) * dtype.itemsize
        try:
            descriptor = os.open(self._path, os.O_RDONLY)  # a round reads every tensor of every update several times
            try:
                data = os.pread(descriptor, num_bytes, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            msg = f"accepted update {self._path} cannot be read ({error}): resume"
            raise StoreError(msg) from error
        if len(data) != num_bytes:
            msg = f"accepted update {self._path} is damaged: resume"
            raise StoreError(msg)
        return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
