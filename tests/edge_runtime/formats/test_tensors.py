from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edge_runtime.bounds import limits
from edge_runtime.errors import TensorError
from edge_runtime.formats.tensors import decode_tensors, decode_with_octets, encode_tensors

ARRAYS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-60_000, 60_000, width=32),
)
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_float32_survives_the_round_trip_exactly(
    tensors: dict[str, npt.NDArray[np.float32]],
) -> None:
    again = decode_tensors(encode_tensors(tensors))
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[n], tensors[n]) and again[n].shape == tensors[n].shape for n in tensors)


def test_the_same_tensors_and_metadata_give_the_same_bytes() -> None:
    metadata = {f"é{i}": f"value {i}" for i in range(6)}
    tensors = {"b": np.ones((2, 3), np.float32), "a": np.zeros(5, np.float32)}
    blobs = {encode_tensors(tensors, metadata=dict(items)) for items in (metadata.items(), reversed(metadata.items()))}
    blobs |= {encode_tensors(tensors, metadata=metadata) for _ in range(8)}

    (blob,) = blobs
    (size,) = struct.unpack_from("<Q", blob)
    assert size % 8 == 0
    assert json.loads(blob[8 : 8 + size])["__metadata__"] == metadata
    assert {name: value.shape for name, value in decode_tensors(blob).items()} == {"a": (5,), "b": (2, 3)}


def test_octets_beside_floats_are_kept_in_a_file_and_refused_from_the_network() -> None:
    floats, octets = {"a": np.ones((2, 3), np.float32)}, {"b": np.arange(5, dtype=np.uint8)}
    blob = encode_tensors(floats, metadata={"rank": "2"}, octets=octets)
    again, kept = decode_with_octets(blob)
    np.testing.assert_array_equal(again["a"], floats["a"])
    assert (list(again), list(kept), kept["b"].tolist()) == (["a"], ["b"], [0, 1, 2, 3, 4])
    with pytest.raises(TensorError, match="type 'U8'"):
        decode_tensors(blob)


@given(ARRAYS)
def test_float16_survives_up_to_its_precision(values: npt.NDArray[np.float32]) -> None:
    again = decode_tensors(encode_tensors({"x": values}, "float16"))["x"]
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, values, rtol=1e-3, atol=1e-7)


def test_bytes_are_the_golden_ones() -> None:
    header = b'{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    header += b" " * (-len(header) % 8)
    data = encode_tensors({"a": np.array([[0.5, -2.0]], np.float32)})
    assert data == struct.pack("<Q", len(header)) + header + struct.pack("<2f", 0.5, -2.0)


def test_a_value_beyond_float16_is_refused() -> None:
    with pytest.raises(TensorError, match="does not fit float16"):
        encode_tensors({"x": np.array([70_000.0], np.float32)}, "float16")


def test_metadata_is_no_tensor() -> None:
    data = encode_tensors({"x": np.zeros(1, np.float32)}, metadata={"rank": "8"})
    assert list(decode_tensors(data)) == ["x"]


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 10) + b"{}",
        raw(b"not json"),
        raw(b"[]"),
        raw(b"\xff\xfe"),
        raw(b"[" * 5000),
        raw({"x": 7}),
        raw({"a\0b": ENTRY}, b"\0" * 4),
        raw({"a\x1b[2J": ENTRY}, b"\0" * 4),
        raw({"a" * 5_000: ENTRY}, b"\0" * 4),
        raw({"": ENTRY}, b"\0" * 4),
        raw(b'{"x": {"dtype": "F32", "shape": [' + b"9" * 5_000 + b'], "data_offsets": [0, 4]}}', b"\0" * 4),
        raw(b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"\0" * 4),
        raw({"x": {}}),
        raw({"x": ENTRY}),
        raw({"x": ENTRY}, b"\0" * 3),
        raw({"x": ENTRY}, b"\0" * 5),
        raw({"x": ENTRY | {"dtype": "I64"}}, b"\0" * 4),
        raw({"x": ENTRY | {"dtype": "BF16"}}, b"\0" * 4),
        raw({"x": ENTRY | {"dtype": ["F32"]}}, b"\0" * 4),
        raw({"x": ENTRY | {"shape": [2]}}, b"\0" * 4),
        raw({"x": ENTRY | {"shape": [-1]}}, b"\0" * 4),
        raw({"x": ENTRY | {"shape": [1 << 62, 1 << 62]}}, b"\0" * 4),
        raw({"x": ENTRY | {"data_offsets": [4, 0]}}, b"\0" * 4),
        raw({"x": ENTRY, "y": ENTRY}, b"\0" * 4),
        raw({"__metadata__": {"a": 1}, "x": ENTRY}, b"\0" * 4),
    ],
    ids=lambda data: repr(bytes(data[8:48])),
)
def test_malformed_blobs_are_refused(data: bytes) -> None:
    with pytest.raises(TensorError):
        decode_tensors(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_decoded(data: bytes) -> None:
    with contextlib.suppress(TensorError):
        decode_tensors(data)


@given(st.data())
def test_a_changed_header_byte_is_refused_or_decoded(data: st.DataObject) -> None:
    encoded = bytearray(encode_tensors({"x": np.arange(6, dtype=np.float32).reshape(2, 3)}))
    encoded[data.draw(st.integers(0, len(encoded) - 25))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TensorError):
        decode_tensors(bytes(encoded))


def test_a_blob_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(TensorError, match="at most 100"):
        decode_tensors(encode_tensors({"x": np.zeros(100, np.float32)}), max_bytes=100)


def test_too_many_tensors_are_refused() -> None:
    header = {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(limits.MAX_TENSORS + 1)}
    with pytest.raises(TensorError, match="16385 tensors"):
        decode_tensors(raw(header))
