"""Update transforms: changes of an update before a device sends it, and before the server combines it.

A chain of transforms is applied in order. Tensors are read, changed and released one at a time, so the tensors of a
round need not fit in memory. The random generators of a transform follow from the run's seed, the round, the device and
the place in the chain, so a restarted process draws the same numbers. An empty chain changes no bit.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExitCode, WireError
from edge_runtime.formats.adapter import Array, Tensors

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?(e-?[0-9]{1,2})?")

LARGEST: Final = 1e6
"""Largest parameter of a transform."""


class TransformError(WireError):
    """A transform is unknown, or its parameter is out of range."""

    exit_code = ExitCode.USAGE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of some tensors by training."""

    tensors: Tensors
    """Tensors after training, float32, by name."""
    start: Callable[[str], Array]
    """Returns the tensor of a name before training, of the same shape."""
    shapes: Mapping[str, tuple[int, ...]]
    """The layout: names and shapes of the trained tensors, in order."""


class Transform(abc.ABC):
    """One transform; subclasses change each tensor."""

    name: ClassVar[str]
    parameter: ClassVar[str]
    """Meaning of the transform's parameter, for messages."""

    def __init__(self, value: float) -> None:
        self.value = value

    @abc.abstractmethod
    def prepare(self, change: Change) -> Callable[[str, Array, np.random.Generator], Array] | None:
        """Return the function that changes each tensor; it takes a name, a value and the tensor's own generator.

        Returns:
            The function; None = no tensor is changed.
        """


class Clip(Transform):
    """Scale a change down to a maximum Frobenius norm over all tensors together.

    With ``d = trained - start`` and a bound ``C``: ``start + d * min(1, C / |d|)``. This is fixed clipping of DP-FedAvg
    (arXiv 1710.06963); it bounds the effect of one device on the model, and is not privacy by itself.
    """

    name = "clip"
    parameter = "largest norm of a device's change"

    def prepare(self, change: Change) -> Callable[[str, Array, np.random.Generator], Array] | None:
        """See :meth:`Transform.prepare`."""
        squares = 0.0
        for name in change.shapes:
            moved = _double(change.tensors[name]) - _double(change.start(name))
            squares += float(np.vdot(moved, moved))
        norm = math.sqrt(squares)
        if norm <= self.value:
            return None
        factor = self.value / norm

        def scale(name: str, value: Array, rng: np.random.Generator) -> Array:
            del rng
            start = _double(change.start(name))
            return (start + factor * (_double(value) - start)).astype(np.float32)

        return scale


class Noise(Transform):
    """Add Gaussian noise of a standard deviation to every trained value.

    The average over ``n`` devices of equal weight has noise of standard deviation ``value / sqrt(n)``. This module does
    no privacy accounting.
    """

    name = "noise"
    parameter = "standard deviation"

    def prepare(self, change: Change) -> Callable[[str, Array, np.random.Generator], Array] | None:
        """See :meth:`Transform.prepare`."""
        del change

        def disturb(name: str, value: Array, rng: np.random.Generator) -> Array:
            del name
            return (_double(value) + rng.normal(0.0, self.value, value.shape)).astype(np.float32)

        return disturb


TRANSFORMS: Final[Mapping[str, type[Transform]]] = {kind.name: kind for kind in (Clip, Noise)}


def parse_transforms(text: str) -> tuple[Transform, ...]:
    """A chain from ``NAME:VALUE,...``, such as ``clip:1.0,noise:0.001``; none from an empty text.

    Raises:
        TransformError: a transform is unknown, or its value is not above 0 and at most 1e6.
    """
    chain = []
    for part in text.split(",") if text else ():
        shown, (name, _, value) = repr(part.strip()[:50]), part.strip().partition(":")
        if name not in TRANSFORMS:
            msg = (
                f"update transform {shown} is not known: write {' or '.join(f'{known}:VALUE' for known in TRANSFORMS)}"
            )
            raise TransformError(msg)
        kind = TRANSFORMS[name]
        if not _NUMBER.fullmatch(value) or not 0.0 < float(value) <= LARGEST:
            msg = f"update transform {shown}: the {kind.parameter} must be above 0 and at most {LARGEST:g}"
            raise TransformError(msg)
        chain.append(kind(float(value)))
    return tuple(chain)


def apply_transforms(chain: Sequence[Transform], change: Change, seed: Sequence[int], device_id: str) -> Tensors:
    """Apply a chain to a device's tensors; tensors outside the layout stay as they are.

    Args:
        chain: transforms, the first is applied first.
        change: change of one device in one round.
        seed: seeds of the run and the round, each 0 or more.
        device_id: the device.

    Returns:
        The tensors; each is changed when it is read, always to the same bits.
    """
    tensors = change.tensors
    for place, transform in enumerate(chain):
        entropy = (*seed, place, zlib.crc32(device_id.encode()))
        function = transform.prepare(dataclasses.replace(change, tensors=tensors))
        if function is not None:
            tensors = _Transformed(tensors, tuple(change.shapes), function, entropy)
    return tensors


class _Transformed(Mapping[str, Array]):
    """Tensors to which a function is applied when they are read."""

    def __init__(
        self,
        tensors: Tensors,
        names: Sequence[str],
        function: Callable[[str, Array, np.random.Generator], Array],
        entropy: Sequence[int],
    ) -> None:
        self._tensors = tensors
        self._index = dict(zip(names, itertools.count()))
        self._function = function
        self._entropy = entropy

    def __getitem__(self, name: str) -> Array:
        value = self._tensors[name]
        if name not in self._index:
            return value
        return self._function(name, value, np.random.default_rng((*self._entropy, self._index[name])))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _double(value: Array) -> npt.NDArray[np.float64]:
    return np.asarray(value, np.float64)
