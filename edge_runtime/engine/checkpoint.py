"""Checkpoints: the state of training as bytes; a damaged checkpoint is refused.

    SHA-256 of the rest (32 bytes) | length of the header (uint32, little-endian) | header (msgpack) | vectors

The vectors are params, exp_avg and exp_avg_sq, float32 ``[N]``, little-endian, one after the other. They are written
from the run's own memory, so a checkpoint needs no second copy of the state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import struct
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.engine.errors import CheckpointError
from edge_runtime.engine.evaluator import EvaluationResult
from edge_runtime.engine.training_state import VECTORS, History, TrainingState
from edge_runtime.formats import names
from edge_runtime.formats.plan import PackedPlan

VERSION: Final = 1
"""Version of the format; checkpoints of other versions are refused."""

_LENGTH: Final = struct.Struct("<I")
_DIGEST_BYTES: Final = 32
_LITTLE_FLOAT: Final = np.dtype("<f4")

Count = Annotated[int, msgspec.Meta(ge=0)]
Part = bytes | memoryview


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state from which another process resumes an assignment, given its data and the artifact."""

    identity: str
    """Identity of the training: a digest of all its inputs."""
    state: TrainingState
    history: History
    before: EvaluationResult | None
    """The evaluation before training; None if nothing is held out."""
    before_s: float
    """Seconds that this evaluation took."""
    paused_s: float
    """Seconds that the assignment was paused so far."""


class _Group(msgspec.Struct, frozen=True, kw_only=True):
    layer: int
    group: str
    values: bytes


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1]
    identity: str
    num_steps: Count
    grad_norm: float
    plan: PackedPlan
    num_elements: Count
    scores: tuple[_Group, ...]
    losses: list[float]
    step_times_s: list[float]
    importance_s: float
    before: EvaluationResult | None
    before_s: float
    paused_s: float


_decoder = msgspec.msgpack.Decoder(_Header)


def encode_checkpoint(checkpoint: Checkpoint) -> tuple[Part, ...]:
    """The bytes of a checkpoint in parts, in order; write them before the run's next step."""
    state, history = checkpoint.state, checkpoint.history
    vectors = [_bytes_of(state.vectors[name]) for name in VECTORS]
    header = _Header(
        version=VERSION,
        identity=checkpoint.identity,
        num_steps=state.num_steps,
        grad_norm=state.grad_norm,
        plan=state.plan,
        num_elements=state.vectors[names.PARAMS].size,
        scores=tuple(
            _Group(layer=layer, group=group, values=bytes(_bytes_of(values)))
            for (layer, group), values in state.scores.items()
        ),
        losses=history.losses,
        step_times_s=history.step_times_s,
        importance_s=history.importance_s,
        before=checkpoint.before,
        before_s=checkpoint.before_s,
        paused_s=checkpoint.paused_s,
    )
    encoded = msgspec.msgpack.encode(header)
    body: tuple[Part, ...] = (_LENGTH.pack(len(encoded)), encoded, *vectors)
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    return (digest.digest(), *body)


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Parse a checkpoint of :func:`encode_checkpoint`.

    Raises:
        CheckpointError: the bytes are damaged, truncated, or of another version of the format.
    """
    view = memoryview(data)
    if hashlib.sha256(view[_DIGEST_BYTES:]).digest() != bytes(view[:_DIGEST_BYTES]):
        msg = f"{len(data)} bytes with a wrong digest"
        raise CheckpointError(msg)
    begin = _DIGEST_BYTES + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack_from(view, _DIGEST_BYTES)
        header = _decoder.decode(view[begin : begin + length])
        num_bytes = _LITTLE_FLOAT.itemsize * header.num_elements
        ends = [begin + length + turn * num_bytes for turn in range(len(VECTORS) + 1)]
        if ends[-1] != len(data) or not header.num_steps == len(header.losses) == len(header.step_times_s):
            msg = "its parts do not fit together"
            raise CheckpointError(msg)
        parts = _parts(view, ends)
        vectors = dict(zip(VECTORS, parts, strict=True))
        scores = {(entry.layer, entry.group): _floats(entry.values) for entry in header.scores}
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        msg = f"not of version {VERSION} of the format ({error})"
        raise CheckpointError(msg) from error
    return Checkpoint(
        identity=header.identity,
        state=TrainingState(
            num_steps=header.num_steps,
            grad_norm=header.grad_norm,
            plan=header.plan,
            vectors=vectors,
            scores=scores,
        ),
        history=History(losses=header.losses, step_times_s=header.step_times_s, importance_s=header.importance_s),
        before=header.before,
        before_s=header.before_s,
        paused_s=header.paused_s,
    )


def _parts(view: memoryview, ends: list[int]) -> Iterator[npt.NDArray[np.float32]]:
    for begin, end in itertools.pairwise(ends):
        yield _floats(view[begin:end])


def _floats(part: Part) -> npt.NDArray[np.float32]:
    return np.frombuffer(part, _LITTLE_FLOAT).astype(np.float32)


def _bytes_of(values: npt.NDArray[np.float32]) -> memoryview:
    """The bytes of an array, little-endian; a view of its memory if that is little-endian already."""
    return np.ascontiguousarray(values, _LITTLE_FLOAT).data.cast("B")
