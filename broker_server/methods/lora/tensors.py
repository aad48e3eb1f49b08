"""The tensors of a reply by kind: adapter or importance."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_runtime.formats import names
from edge_runtime.formats.adapter import Tensors

Array = npt.NDArray[np.float32]

_GROUP: Final = re.compile(re.escape(names.IMPORTANCE_PREFIX) + r"(\d+)\.(.+)")


class Named(Mapping[str, Array]):
    """Some tensors of a mapping, read lazily."""

    def __init__(self, tensors: Tensors, only: Collection[str]) -> None:
        self._tensors = tensors
        self._only = only

    def __getitem__(self, name: str) -> Array:
        if name not in self._only:
            raise KeyError(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._only)

    def __len__(self) -> int:
        return len(self._only)


def importance_of(tensors: Tensors) -> dict[tuple[int, str], Array]:
    """Scores in a reply, ``(layer, group)`` to float32 ``[num_kept]``; empty = it has none."""
    found = ((_GROUP.fullmatch(name), name) for name in tensors)
    return {(int(match[1]), match[2]): tensors[name] for match, name in found if match is not None}
