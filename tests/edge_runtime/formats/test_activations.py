"""Replies of split tuning: what a coding costs in precision, the bytes on the wire, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_runtime.bounds import limits
from edge_runtime.errors import TensorError
from edge_runtime.formats.activations import ActivationDtype, Activations, Coder, Form, decode_activations
from edge_runtime.formats.manifest import Manifest, digest_of
from edge_runtime.formats.tensors import decode_arrays, encode_arrays

FORM = Form(artifact_digest="ab" * 32, cut=2, dtype="int8", hidden_size=8, max_length=5, num_labels=3, vocab_size=50)
LENGTHS = np.array([3, 5, 1, 4])
LABELS = np.array([2, 0, 1, 1], np.int32)
GOLDEN = {
    "int8": (556, "7581e11c0cacd614"),
    "float16": (552, "9ecc072a5d165bab"),
    "float32": (760, "dfcfe0527169054b"),
}


def hidden() -> np.ndarray:
    """Rows of magnitudes from a thousandth to a thousand, and one of zeros."""
    rows = np.random.default_rng(3).normal(size=(LENGTHS.sum(), 8)) * np.geomspace(1e-3, 1e3, LENGTHS.sum())[:, None]
    rows[4] = 0
    return rows.astype(np.float32)


def encoded(form: Form = FORM, labels: np.ndarray = LABELS) -> bytes:
    coder, rows, ends = Coder(form, LENGTHS, labels), hidden(), np.cumsum(LENGTHS)
    for example in (2, 0, 3, 1):
        coder.put(example, rows[ends[example] - LENGTHS[example] : ends[example]])
    return coder.encode()


def of_language(dtype: ActivationDtype = "int8") -> tuple[Form, bytes]:
    form = dataclasses.replace(FORM, dtype=dtype, num_labels=None)
    return form, encoded(form, np.arange(LENGTHS.sum(), dtype=np.int32))


@pytest.mark.parametrize(("dtype", "error"), [("int8", 1 / 254), ("float16", 2**-11), ("float32", 0.0)])
def test_what_comes_out_is_what_went_in_within_the_coding(dtype: ActivationDtype, error: float) -> None:
    form = dataclasses.replace(FORM, dtype=dtype)
    found, rows = decode_activations(encoded(form), form, 4), hidden()
    np.testing.assert_array_equal(found.lengths, LENGTHS)
    np.testing.assert_array_equal(found.labels, LABELS)
    bound = error * np.abs(rows).max(axis=1, keepdims=True) * (1 + 1e-5) + 2.0**-25 * (dtype == "float16")
    assert (np.abs(found.rows(0, len(rows)) - rows) <= bound).all()
    np.testing.assert_array_equal(found.rows(3, 8), found.rows(0, len(rows))[3:8])


def test_tokens_of_a_language_model_go_beside() -> None:
    form, blob = of_language()
    np.testing.assert_array_equal(decode_activations(blob, form, 4).labels, np.arange(13))


@pytest.mark.parametrize("dtype", GOLDEN)
def test_bytes_on_the_wire(dtype: ActivationDtype) -> None:
    """Of values that every coding holds exactly, on every machine."""
    form = dataclasses.replace(FORM, dtype=dtype)
    rows = ((np.arange(13 * 8).reshape(13, 8) * 37 % 255 - 127) / 8).astype(np.float32)
    coder, ends = Coder(form, LENGTHS, LABELS), np.cumsum(LENGTHS)
    for example, end in enumerate(ends):
        coder.put(example, rows[end - LENGTHS[example] : end])
    blob = coder.encode()
    assert (len(blob), digest_of(blob)[:16]) == GOLDEN[dtype]
    assert len(blob) <= form.num_bytes(4, 13)
    assert b'{"__metadata__":{"artifact_digest":"abab' in blob[:50]


def test_a_row_costs_what_is_said_of_it() -> None:
    """Exactly: what grows with tokens and examples, whatever the header takes."""
    for form, label in ((FORM, 0), (of_language()[0], 4)):
        per_token = form.num_bytes(1, 2) - form.num_bytes(1, 1)
        assert per_token == 8 + 4 + label
    for dtype, row in (("float16", 16), ("float32", 32)):
        form = dataclasses.replace(FORM, dtype=dtype)  # type: ignore[arg-type]
        assert form.num_bytes(1, 2) - form.num_bytes(1, 1) == row
    assert FORM.num_bytes(2, 1) - FORM.num_bytes(1, 1) == 8


def changed(change: Callable[[dict[str, Any]], object], **said: str) -> bytes:
    tensors = dict(decode_arrays(encoded(), ("I8", "I32", "F16", "F32")))
    change(tensors)
    return encode_arrays(tensors, {"artifact_digest": "ab" * 32, "cut": "2", **said})


def put(name: str, value: np.ndarray) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({name: value})


def at(name: str, place: int, value: float) -> Callable[[dict[str, Any]], object]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[place] = value

    return change


REFUSED: dict[str, tuple[bytes, str]] = {
    "another artifact": (changed(lambda _: None, artifact_digest="cd" * 32), "activations are of artifact 'cdcd"),
    "another cut": (changed(lambda _: None, cut="3"), "and cut '3', expected 'abababababab' and '2'"),
    "no metadata": (encode_arrays({"lengths": LABELS}, {}), "activations are of artifact 'None'"),
    "another coding": (changed(put("hidden", hidden())), "have tensors .*'hidden': 'float32'"),
    "no scales": (changed(lambda tensors: tensors.pop("scales")), "expected .*'scales': 'float32'"),
    "one tensor more": (changed(put("more", LABELS)), "have tensors .*'more'"),
    "tokens in place of classes": (changed(lambda t: t.update(tokens=t.pop("labels"))), "have tensors .*'tokens'"),
    "lengths of another number": (changed(put("lengths", np.ones(3, np.int32))), "says 4 examples"),
    "lengths in two axes": (changed(put("lengths", np.ones((2, 2), np.int32))), "says 4 examples"),
    "an example of no token": (changed(at("lengths", 1, 0)), "have 0 to 4 tokens, expected 1 to 5"),
    "a negative length": (changed(at("lengths", 1, -2)), "have -2 to 4 tokens"),
    "an example that is too long": (changed(at("lengths", 1, 6)), "have 1 to 6 tokens, expected 1 to 5"),
    "other tokens than lengths say": (changed(at("lengths", 2, 2)), "hidden has shape .13, 8., expected .14, 8."),
    "another hidden size": (changed(put("hidden", np.zeros((13, 7), np.int8))), "expected .13, 8. for 4 examples"),
    "a scale too few": (changed(put("scales", np.ones(12, np.float32))), "scales has shape .12,., expected .13,."),
    "a label too many": (changed(put("labels", np.zeros(5, np.int32))), "labels has shape .5,., expected .4,."),
    "a scale that is no number": (changed(at("scales", 5, float("nan"))), "scales are nan to nan"),
    "a negative scale": (changed(at("scales", 5, -1.0)), "scales are -1 to"),
    "a scale beyond all bounds": (changed(at("scales", 5, 600.0)), "expected 0 to 515.7"),
    "a code that no rounding gives": (changed(at("hidden", 20, -128)), "has the code -128"),
    "a class too many": (changed(at("labels", 0, 3)), "labels are 0 to 3, expected 0 to 2"),
    "a negative class": (changed(at("labels", 0, -1)), "labels are -1 to 1, expected 0 to 2"),
    "cut off": (encoded()[:-1], "tensor blob is malformed"),
    "nothing": (b"", "too short"),
    "metadata that is none": (encoded().replace(b'{"artifact_digest"', b'[{"artifact_diges'), "malformed header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_device_sends_is_refused_in_one_line(case: str) -> None:
    blob, why = REFUSED[case]
    with pytest.raises(TensorError, match=why) as refused:
        decode_activations(blob, FORM, 4)
    assert "\n" not in str(refused.value)


def test_another_number_of_examples_than_the_update_says_is_refused() -> None:
    with pytest.raises(TensorError, match="the update says 5 examples"):
        decode_activations(encoded(), FORM, 5)
    assert isinstance(decode_activations(encoded(), FORM), Activations), "a file of one's own was compared before"


def test_a_token_that_the_vocabulary_has_not_is_refused() -> None:
    form, blob = of_language()
    with pytest.raises(TensorError, match="tokens are 0 to 12, expected 0 to 11"):
        decode_activations(blob, dataclasses.replace(form, vocab_size=12), 4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5])
def test_floats_that_are_not_finite_or_too_large_are_refused(dtype: ActivationDtype, value: float) -> None:
    form = dataclasses.replace(FORM, dtype=dtype)
    tensors = dict(decode_arrays(encoded(form), ("I32", "F16", "F32")))
    tensors["hidden"] = tensors["hidden"].copy()
    with np.errstate(over="ignore"):
        tensors["hidden"][7, 3] = value
    blob = encode_arrays(tensors, {"artifact_digest": form.artifact_digest, "cut": "2"})
    with pytest.raises(TensorError, match="not finite, or beyond 65504"):
        decode_activations(blob, form, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_device_sends_no_state_that_would_be_refused(value: float) -> None:
    rows = np.ones((3, 8), np.float32)
    rows[1, 2] = value
    with pytest.raises(TensorError, match="example 0: a hidden state at the cut has the magnitude"):
        Coder(FORM, LENGTHS, LABELS).put(0, rows)


def test_values_are_looked_at_in_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CHUNK_INDICES", 4)
    with pytest.raises(TensorError, match="has the code -128"):
        decode_activations(changed(at("hidden", 12 * 8, -128)), FORM, 4)


@pytest.mark.parametrize("cut", [0, 2, 9])
def test_a_cut_leaves_a_block_on_either_side(cut: int, manifest: Manifest) -> None:
    with pytest.raises(TensorError, match=f"the cut is after {cut} blocks, expected 1 to 1: .* has 2 blocks"):
        Form.of(manifest, "ab" * 32, cut, "int8", 5)
    assert Form.of(manifest, "ab" * 32, 1, "int8", 5).num_labels == len(manifest.labels)
