"""The reply of zero-order tuning survives the wire to the last bit; what no device sends is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edge_runtime.errors import TensorError
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.formats.zero_order import NOT_FINITE, SCALARS, decode_reply, encode_reply

SCALAR_VALUES = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
COUNT = np.zeros(1, np.float32)


def test_a_reply_survives_the_wire() -> None:
    reply = decode_reply(encode_reply(SCALAR_VALUES, 3), (10, 4))
    assert reply.scalars.tobytes() == SCALAR_VALUES.tobytes()
    assert reply.num_not_finite == 3


def test_a_reply_of_ten_steps_and_four_perturbations_is_under_400_bytes() -> None:
    assert len(encode_reply(SCALAR_VALUES, 0)) < 400


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({SCALARS: SCALAR_VALUES}, "expected scalars and not_finite"),
        ({SCALARS: SCALAR_VALUES, NOT_FINITE: COUNT, "more": COUNT}, "expected scalars and not_finite"),
        ({SCALARS: SCALAR_VALUES.T, NOT_FINITE: COUNT}, r"expected \(10, 4\) and \(1,\)"),
        ({SCALARS: SCALAR_VALUES, NOT_FINITE: np.zeros(2, np.float32)}, r"expected \(10, 4\) and \(1,\)"),
        ({SCALARS: SCALAR_VALUES * np.float32(np.nan), NOT_FINITE: COUNT}, "scalars that are not finite"),
        ({SCALARS: SCALAR_VALUES, NOT_FINITE: COUNT + 0.5}, "expected a whole number"),
        ({SCALARS: SCALAR_VALUES, NOT_FINITE: COUNT + np.float32(np.inf)}, "expected a whole number"),
        ({SCALARS: SCALAR_VALUES, NOT_FINITE: COUNT - 1}, "counts -1 scalars"),
        ({SCALARS: SCALAR_VALUES, NOT_FINITE: COUNT + 41}, "counts 41 scalars that were not finite, of 40"),
    ],
)
def test_what_no_device_sends_is_refused(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        decode_reply(encode_tensors(tensors), (10, 4))


def test_bytes_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(TensorError):
        decode_reply(b"\x00" * 40, (10, 4))


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(TensorError, match="not finite"):
        encode_reply(np.full((1, 1), np.inf, np.float32), 0)
    with pytest.raises(TensorError, match="counts 2"):
        encode_reply(np.zeros((1, 1), np.float32), 2)
