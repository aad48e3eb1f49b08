"""The reply of split tuning: hidden states of a device's examples at the cut, with labels; made once in a run.

It holds only rows of real tokens, one after the other. In *int8* each row has its own scale: ``h ~ code * scale``
with ``scale = max |h| / 127`` and codes in [-127, 127], as :func:`edge_runtime.formats.quantization.quantize` rounds.

Shape legend: ``E`` examples, ``T`` tokens of all of them, ``H`` hidden size.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from edge_runtime.bounds import limits
from edge_runtime.errors import TensorError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.quantization import quantize
from edge_runtime.formats.tensors import decode_arrays, decode_metadata, encode_arrays

Array = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

ActivationDtype = Literal["int8", "float16", "float32"]
"""Coding of hidden states: int8 with a float32 scale for each row, or floats."""

LARGEST: Final = 65504.0
"""Largest magnitude of a hidden state for every coding: the largest float16."""
ROW_SCALE_BYTES: Final = 4
"""Bytes of the scale of an int8 row."""
HEADER_BYTES: Final = 4096
"""Allowance for the safetensors header of a reply, which has four tensors at most."""

LENGTHS: Final = "lengths"
HIDDEN: Final = "hidden"
SCALES: Final = "scales"
LABELS: Final = "labels"
TOKENS: Final = "tokens"
ARTIFACT: Final = "artifact_digest"
CUT: Final = "cut"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The required form of a reply; server and device derive it from the artifact and the work."""

    artifact_digest: str
    cut: int
    """Number of blocks before the hidden states."""
    dtype: ActivationDtype
    hidden_size: int
    max_length: int
    """Most tokens of an example."""
    num_labels: int | None
    """Number of classes; None for a language model, whose labels are its tokens."""
    vocab_size: int

    @classmethod
    def of(cls, manifest: Manifest, artifact_digest: str, cut: int, dtype: ActivationDtype, max_length: int) -> Self:
        """The form of replies to a piece of work.

        Raises:
            TensorError: there is no block below the cut, or none above.
        """
        if not 1 <= cut < manifest.num_layers:
            most = manifest.num_layers - 1
            msg = f"the cut is after {cut} blocks, expected 1 to {most}: {manifest.model_name} has {most + 1} blocks"
            raise TensorError(msg)
        is_classifier = manifest.task == "text-classification"
        return cls(
            artifact_digest=artifact_digest,
            cut=cut,
            dtype=dtype,
            hidden_size=manifest.hidden_size,
            max_length=max_length,
            num_labels=len(manifest.labels) if is_classifier else None,
            vocab_size=manifest.text.vocab_size,
        )

    def num_bytes(self, num_examples: int, num_tokens: int) -> int:
        """Largest size in bytes of a reply with these numbers of examples and tokens."""
        row = self.hidden_size * np.dtype(self.dtype).itemsize + (ROW_SCALE_BYTES if self.dtype == "int8" else 0)
        label = 4 * (num_tokens if self.num_labels is None else num_examples)
        return HEADER_BYTES + 4 * num_examples + label + num_tokens * row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Coded hidden states of some examples."""

    lengths: Int64
    """Tokens of each example, int64 ``[E]``, all 1 or more."""
    hidden: npt.NDArray[Any]
    """``[T, H]``, int8 codes or floats."""
    scales: Array | None
    """Float32 ``[T]`` for int8, else None."""
    labels: Int32
    """Classes, int32 ``[E]``; for a language model the tokens, int32 ``[T]``."""

    def rows(self, begin: int, end: int) -> Array:
        """Hidden states of tokens ``begin`` to ``end``, float32 ``[n, H]``."""
        rows = self.hidden[begin:end].astype(np.float32)
        return rows if self.scales is None else rows * self.scales[begin:end, None]


class Coder:
    """Codes the activations of some examples, in any order.

    Args:
        form: form of the reply.
        lengths: tokens of each example, int64 ``[E]``.
        labels: see :class:`Activations`.
    """

    def __init__(self, form: Form, lengths: Int64, labels: Int32) -> None:
        self._form = form
        self._lengths = lengths
        self._labels = labels
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        num_tokens = int(self._offsets[-1])
        self._hidden = np.zeros((num_tokens, form.hidden_size), np.dtype(form.dtype))
        self._scales = np.zeros(num_tokens, np.float32) if form.dtype == "int8" else None

    def put(self, example: int, rows: Array) -> None:
        """Code an example's hidden states, float32 ``[length, H]``.

        Raises:
            TensorError: a hidden state is not finite, or beyond the bound.
        """
        largest = float(np.abs(rows).max())
        if not largest <= LARGEST:  # NaN too
            msg = f"example {example}: a hidden state at the cut has the magnitude {largest:g}, at most {LARGEST:g}"
            raise TensorError(msg)
        place = slice(self._offsets[example], self._offsets[example + 1])
        if self._scales is None:
            self._hidden[place] = rows
            return
        coded = quantize(rows, "int8")
        self._hidden[place], self._scales[place] = coded.codes, coded.scales[:, 0]

    def encode(self) -> bytes:
        """Safetensors bytes of all examples; the same activations give the same bytes."""
        form = self._form
        tensors: dict[str, npt.NDArray[Any]] = {
            LENGTHS: self._lengths.astype(np.int32),
            HIDDEN: self._hidden,
            TOKENS if form.num_labels is None else LABELS: self._labels.astype(np.int32),
        }
        if self._scales is not None:
            tensors[SCALES] = self._scales
        return encode_arrays(tensors, {ARTIFACT: form.artifact_digest, CUT: str(form.cut)})


def decode_activations(blob: bytes, form: Form, num_examples: int | None = None) -> Activations:
    """Decode and check a reply from a device.

    Args:
        blob: safetensors bytes.
        form: required form.
        num_examples: number of examples that the device reported; None = it was compared when the reply arrived.

    Raises:
        TensorError: the reply is malformed; is of another artifact, cut or coding; or has invalid lengths, scales,
            values or labels.
    """
    said = decode_metadata(blob)
    if said.get(ARTIFACT) != form.artifact_digest or said.get(CUT) != str(form.cut):
        made = f"artifact {str(said.get(ARTIFACT))[:12]!r} and cut {str(said.get(CUT))[:12]!r}"
        msg = f"activations are of {made}, expected {form.artifact_digest[:12]!r} and {str(form.cut)!r}"
        raise TensorError(msg)
    tensors = decode_arrays(blob, ("I8", "I32", "F16", "F32"))
    labelled = TOKENS if form.num_labels is None else LABELS
    kinds = {LENGTHS: "int32", HIDDEN: str(form.dtype), labelled: "int32"}
    if form.dtype == "int8":
        kinds[SCALES] = "float32"
    if (found := {name: value.dtype.name for name, value in sorted(tensors.items())[:8]}) != kinds:
        msg = f"activations have tensors {str(found)[:200]}, expected {dict(sorted(kinds.items()))}"
        raise TensorError(msg)
    lengths, hidden = tensors[LENGTHS], tensors[HIDDEN]
    _check_lengths(lengths, form, num_examples)
    num_tokens = int(lengths.sum(dtype=np.int64))
    num_labelled = num_tokens if form.num_labels is None else lengths.size
    shapes = {HIDDEN: (num_tokens, form.hidden_size), SCALES: (num_tokens,), labelled: (num_labelled,)}
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            msg = f"{name} has shape {tensors[name].shape}, expected {shape} for {lengths.size} examples"
            raise TensorError(msg)
    _check_values(hidden, tensors.get(SCALES))
    most = form.vocab_size if form.num_labels is None else form.num_labels
    labels = tensors[labelled]
    if not 0 <= labels.min() <= labels.max() < most:
        msg = f"{labelled} are {labels.min()} to {labels.max()}, expected 0 to {most - 1}"
        raise TensorError(msg)
    return Activations(lengths=lengths.astype(np.int64), hidden=hidden, scales=tensors.get(SCALES), labels=labels)


def _check_lengths(lengths: Int32, form: Form, num_examples: int | None) -> None:
    if lengths.ndim != 1 or not lengths.size or num_examples not in {None, lengths.size}:
        msg = f"{LENGTHS} has shape {lengths.shape}, but the update says {num_examples} examples"
        raise TensorError(msg)
    if not 1 <= lengths.min() <= lengths.max() <= form.max_length:
        msg = f"examples have {lengths.min()} to {lengths.max()} tokens, expected 1 to {form.max_length}"
        raise TensorError(msg)


def _check_values(hidden: npt.NDArray[Any], scales: Array | None) -> None:
    """Refuse values that are not finite or beyond the bound, some rows at a time."""
    if scales is not None and not (scales.min() >= 0 and scales.max() * 127 <= LARGEST * (1 + 1e-6)):  # NaN too
        msg = f"{SCALES} are {scales.min():g} to {scales.max():g}, expected 0 to {LARGEST / 127:g}, all finite"
        raise TensorError(msg)
    for begin in range(0, len(hidden), limits.MAX_CHUNK_INDICES):
        rows = hidden[begin : begin + limits.MAX_CHUNK_INDICES]
        if scales is not None and rows.min() < -127:
            msg = f"{HIDDEN} has the code {rows.min()}, expected -127 to 127"
            raise TensorError(msg)
        if scales is None and not max(float(rows.max()), -float(rows.min())) <= LARGEST:
            msg = f"{HIDDEN} has values that are not finite, or beyond {LARGEST:g}"
            raise TensorError(msg)
