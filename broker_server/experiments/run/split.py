"""Splits of one data set over devices, pure and seeded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from broker_server.errors import ConfigError

MIN_EXAMPLES = 8
"""Examples that a Dirichlet split leaves every device with, where there are enough of them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SplitSpec:
    """Kind and parameters of a split."""

    kind: Literal["iid", "dirichlet", "by-key"]
    alpha: float = math.inf
    """Concentration of the Dirichlet distribution; smaller is more skewed."""
    field: str = "key"
    """Field of an example whose value decides (``by-key``)."""


def parse_split(text: str) -> SplitSpec:
    """A split from ``iid``, ``dirichlet:A``, ``by-key`` or ``by-key:FIELD``.

    Raises:
        ConfigError: none of these.

    >>> parse_split("dirichlet:0.5").alpha
    0.5
    """
    kind, _, detail = text.partition(":")
    if text == "iid":
        return SplitSpec(kind="iid")
    if kind == "by-key":
        return SplitSpec(kind="by-key", field=detail or "key")
    if kind == "dirichlet":
        try:
            alpha = float(detail)
        except ValueError:
            alpha = math.nan
        if math.isfinite(alpha) and alpha > 0:
            return SplitSpec(kind="dirichlet", alpha=alpha)
    msg = f"split {text!r} is not known: expected iid, dirichlet:A (A > 0, such as dirichlet:0.5) or by-key[:FIELD]"
    raise ConfigError(msg)


def split(
    examples: Sequence[Mapping[str, object]],
    num_devices: int,
    spec: SplitSpec,
    rng: np.random.Generator,
    label_field: str = "label",
    key_field: str | None = None,
) -> list[list[int]]:
    """Indices of the examples of each device, ascending; every example goes to exactly one device.

    Args:
        examples: the data set.
        num_devices: 1 or more.
        spec: how.
        rng: source of all randomness.
        label_field: field that a Dirichlet split looks at.
        key_field: field that a by-key split looks at; None = the one that ``spec`` names.

    Raises:
        ConfigError: fewer examples than devices, a field that ``spec`` needs is missing, or fewer keys than devices.
    """
    if len(examples) < num_devices:
        there = f"there are only {len(examples)} training examples"
        msg = f"--devices is {num_devices}, but {there}: use fewer devices, or more data"
        raise ConfigError(msg)
    if spec.kind == "iid":
        parts = [part.tolist() for part in np.array_split(rng.permutation(len(examples)), num_devices)]
    elif spec.kind == "dirichlet":
        parts = _by_label(_values(examples, label_field, "dirichlet"), num_devices, spec.alpha, rng)
    else:
        parts = _by_key(_values(examples, key_field or spec.field, "by-key"), num_devices, spec.field)
    return [sorted(part) for part in parts]


def _values(examples: Sequence[Mapping[str, object]], field: str, kind: str) -> list[str]:
    for number, example in enumerate(examples, start=1):
        if field not in example:
            msg = f"split {kind} needs the field {field!r}, which example {number} lacks: use --split iid, or add it"
            raise ConfigError(msg)
    return [str(example[field]) for example in examples]


def _by_label(labels: list[str], num_devices: int, alpha: float, rng: np.random.Generator) -> list[list[int]]:
    """For each label, its examples are dealt in shares drawn from Dirichlet(alpha, ..., alpha)."""
    parts: list[list[int]] = [[] for _ in range(num_devices)]
    for label in sorted(set(labels)):
        members = rng.permutation([i for i, value in enumerate(labels) if value == label])
        shares = rng.dirichlet(np.full(num_devices, alpha))
        shares = shares if np.isfinite(shares).all() else np.eye(num_devices)[rng.integers(num_devices)]
        cuts = np.floor(np.cumsum(shares)[:-1] * members.size + 0.5).astype(int)
        for part, indices in zip(parts, np.split(members, cuts), strict=True):
            part.extend(indices.tolist())
    minimum = min(MIN_EXAMPLES, len(labels) // num_devices)
    for part in parts:
        while len(part) < minimum:
            richest = max(parts, key=len)
            part.append(richest.pop(int(rng.integers(len(richest)))))
    return parts


def _by_key(keys: list[str], num_devices: int, field: str) -> list[list[int]]:
    """Whole keys, largest first, each to the device that has the fewest examples so far."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    if len(groups) < num_devices:
        msg = f"--split by-key: {field!r} has {len(groups)} values, --devices {num_devices} need at least as many"
        raise ConfigError(msg)
    parts: list[list[int]] = [[] for _ in range(num_devices)]
    for _, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(parts, key=len).extend(members)
    return parts
