"""Tensors on the wire: safetensors bytes, checked before anything is allocated; never pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from edge_runtime.bounds import limits
from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import digest_of

WireDtype = Literal["float32", "float16"]

KINDS: Final = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32"}
"""Types of safetensors, by numpy's names."""


def encode_tensors(
    tensors: Mapping[str, npt.NDArray[np.float32]],
    dtype: WireDtype = "float32",
    metadata: Mapping[str, str] | None = None,
    exact: Collection[str] = (),
    octets: Mapping[str, npt.NDArray[np.uint8]] | None = None,
) -> bytes:
    """Safetensors bytes of named arrays, stored as ``dtype``; arrays named in ``exact`` are stored as float32.

    ``octets`` are stored unchanged beside them: see :func:`decode_with_octets`.

    The same tensors and metadata always give the same bytes.

    Raises:
        TensorError: a value does not fit ``dtype`` (float16 overflows beyond 65504).
    """
    out: dict[str, npt.NDArray[Any]] = dict(octets or {})
    for name, value in tensors.items():
        stored: WireDtype = "float32" if name in exact else dtype
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(value, dtype=np.dtype(stored))
        if stored == "float16" and not np.isfinite(cast).all():
            msg = f"tensor {name!r} does not fit float16 (largest magnitude {np.abs(value).max():g}); send float32"
            raise TensorError(msg)
        out[name] = cast
    if not metadata:
        return safetensors.numpy.save(out)
    return _with_sorted_metadata(safetensors.numpy.save(out, metadata=dict(metadata)))


def decode_tensors(data: bytes, max_bytes: int = limits.MAX_BLOB_BYTES) -> dict[str, npt.NDArray[np.float32]]:
    """Named float32 arrays from safetensors bytes that came from outside.

    Raises:
        TensorError: malformed, over a limit, or of a type other than float32 and float16.
    """
    loaded = decode_arrays(data, ("F32", "F16"), max_bytes)
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in loaded.items()}


def decode_with_octets(data: bytes) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.uint8]]]:
    """As :func:`decode_tensors`, and arrays of octets beside the floats; for the server's own files, not for devices'.

    Raises:
        TensorError: malformed, over a limit, or of a type other than float32, float16 and uint8.
    """
    loaded = decode_arrays(data, ("F32", "F16", "U8"), limits.MAX_BLOB_BYTES)
    floats = {n: np.ascontiguousarray(v, np.float32) for n, v in loaded.items() if v.dtype != np.uint8}
    return floats, {name: value for name, value in loaded.items() if name not in floats}


def encode_integers(tensors: Mapping[str, npt.NDArray[np.int64]]) -> bytes:
    """Safetensors bytes of named int64 arrays, for values that must arrive exactly."""
    return safetensors.numpy.save({name: np.ascontiguousarray(value, np.int64) for name, value in tensors.items()})


def decode_integers(data: bytes, max_bytes: int = limits.MAX_BLOB_BYTES) -> dict[str, npt.NDArray[np.int64]]:
    """Named int64 arrays from safetensors bytes that came from outside.

    Raises:
        TensorError: malformed, over a limit, or of another type.
    """
    return decode_arrays(data, ("I64",), max_bytes)


def encode_arrays(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Safetensors bytes of arrays of any of :data:`KINDS`; memory holds only the arrays and the bytes."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    parts, end = list[memoryview](), 0
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        stored = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        offsets = [end, end := end + stored.nbytes]
        header[name] = {"dtype": KINDS[stored.dtype.name], "shape": list(stored.shape), "data_offsets": offsets}
        parts.append(stored.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def decode_metadata(data: bytes) -> dict[str, object]:
    """The metadata of safetensors bytes from outside, beside their arrays; values may be of any type.

    Raises:
        TensorError: malformed.
    """
    given = _header(data)[1]
    if not isinstance(given, dict):
        msg = f"tensor blob has malformed metadata: {str(given)[:50]!r}"
        raise TensorError(msg)
    return given


def decode_arrays(
    data: bytes, kinds: Collection[str], max_bytes: int = limits.MAX_BLOB_BYTES
) -> dict[str, npt.NDArray[Any]]:
    """Named arrays of these types of safetensors, from bytes that came from outside.

    Raises:
        TensorError: malformed, over a limit, or of another type.
    """
    if len(data) > max_bytes:
        msg = f"tensor blob is {len(data)} bytes, at most {max_bytes} are accepted"
        raise TensorError(msg)
    header, _ = _header(data)
    if len(header) > limits.MAX_TENSORS:
        msg = f"tensor blob holds {len(header)} tensors, at most {limits.MAX_TENSORS} are accepted"
        raise TensorError(msg)
    for name, entry in header.items():
        if not 0 < len(name) <= limits.MAX_TENSOR_NAME or not name.isprintable():
            most = limits.MAX_TENSOR_NAME
            msg = f"tensor {name[:50]!r} has a name of {len(name)} characters: expected 1 to {most}, all printable"
            raise TensorError(msg)
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            msg = f"tensor {name!r} has type {str(kind)[:50]!r}, expected {' or '.join(kinds)}"
            raise TensorError(msg)
    try:
        loaded: dict[str, npt.NDArray[Any]] = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        msg = f"tensor blob is malformed: {error}"
        raise TensorError(msg) from error
    return loaded


def check_digest(data: bytes, expected: str | None) -> None:
    """Refuse a file whose bytes changed since it was written.

    Args:
        data: bytes of the file.
        expected: SHA-256, 64 hexadecimal digits; None = it was not recorded, and nothing is checked.

    Raises:
        TensorError: the digest differs.
    """
    if expected is not None and (got := digest_of(data)) != expected:
        msg = f"it is not the file that was written: SHA-256 is {got[:12]}..., was {expected[:12]}..."
        raise TensorError(msg)


def _with_sorted_metadata(data: bytes) -> bytes:
    """The same blob with its metadata sorted by key, because safetensors writes metadata in varying order."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors after it stay aligned
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _header(data: bytes) -> tuple[dict[str, object], object]:
    """Entries of the tensors, and the metadata."""
    if len(data) < struct.calcsize("<Q"):
        msg = f"tensor blob of {len(data)} bytes is too short to be safetensors"
        raise TensorError(msg)
    (size,) = struct.unpack_from("<Q", data)
    if size > min(limits.MAX_TENSOR_HEADER_BYTES, len(data) - 8):
        msg = f"tensor blob announces a header of {size} bytes, in {len(data)} bytes"
        raise TensorError(msg)
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        msg = f"tensor blob has a malformed header: {error}"
        raise TensorError(msg) from error
    if not isinstance(header, dict):
        msg = "tensor blob has a malformed header: not an object"
        raise TensorError(msg)
    metadata = header.pop("__metadata__", {})
    return header, metadata
