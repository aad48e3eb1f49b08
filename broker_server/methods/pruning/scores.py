"""Importance from many devices: scores of the units that each holds, averaged, and smoothed over rounds (ours).

With ``I`` the last global scores, ``s_k`` the scores of device ``k`` (LoRA gradients, arXiv 2305.18403), ``H_k`` the
units of one group name (over all layers) that it holds and ``p_k`` its number of examples:

    s'_k(u) = s_k(u) * sum_{v in H_k} I(v) / sum_{v in H_k} s_k(v)        loss scales differ, and change over rounds
    m(u)    = sum_{k: u in H_k} p_k s'_k(u) / sum_{k: u in H_k} p_k
    I'(u)   = smoothing * I(u) + (1 - smoothing) * m(u);   I'(u) = I(u) where nobody holds u

The rescaling is by group name, because scores of heads and of channels are never compared, and makes scores of units
that some hold and others pruned comparable. The result does not depend on the order of the devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from broker_server.errors import ConfigError
from broker_server.methods.pruning.config import PruningConfig
from edge_runtime.errors import PlanError
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.ranking import Importance

Scores = dict[tuple[int, str], npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceScores:
    """One device's scores of the units that it holds."""

    device_id: str
    plan: Plan
    """The plan that the scores are under."""
    num_examples: int
    """Weight of the device, 0 or more."""
    scores: Importance
    """``(layer, group)`` to one score per kept unit, float32 ``[num_kept]``, 0 or more; empty = none."""


def combine(current: Importance, devices: Sequence[DeviceScores], smoothing: float) -> Scores:
    """New global scores; see the module.

    Args:
        current: the last global scores, for every group.
        devices: a device without scores, without weight, or whose scores are all zero does not count.
        smoothing: weight of ``current``, in [0, 1).

    Raises:
        PlanError: scores do not fit their plan, or are negative or not finite.
    """
    weighted = {key: np.zeros(scores.shape, np.float64) for key, scores in current.items()}
    weights = {key: np.zeros(scores.shape, np.float64) for key, scores in current.items()}
    for device in sorted(devices, key=lambda one: one.device_id):
        if not device.scores or device.num_examples == 0:
            continue
        _check(current, device)
        for group in sorted({group for _, group in device.scores}):
            keys = sorted(key for key in device.scores if key[1] == group)
            held = {key: device.plan.kept(*key) for key in keys}
            mine = sum(float(device.scores[key].sum(dtype=np.float64)) for key in keys)
            ours = sum(float(current[key][held[key]].sum(dtype=np.float64)) for key in keys)
            if mine <= 0.0:
                continue
            for key in keys:
                scaled = device.scores[key].astype(np.float64) * (ours / mine)
                weighted[key][held[key]] += device.num_examples * scaled
                weights[key][held[key]] += device.num_examples
    out: Scores = {}
    for key, scores in current.items():
        held_by_any = weights[key] > 0
        mean = np.divide(weighted[key], weights[key], out=scores.astype(np.float64), where=held_by_any)
        smooth = np.where(held_by_any, smoothing * scores + (1.0 - smoothing) * mean, scores)
        out[key] = smooth.astype(np.float32)
    return out


def _check(current: Importance, device: DeviceScores) -> None:
    for key, scores in device.scores.items():
        expected = device.plan.kept(*key).size if key in current else -1
        if scores.shape != (expected,) or not np.isfinite(scores).all() or (scores < 0).any():
            msg = (
                f"scores of device {device.device_id} for layer {key[0]}, {key[1]}: "
                f"need {expected} finite ones of 0 or more, got shape {scores.shape}"
            )
            raise PlanError(msg, device_id=device.device_id)


def check_scorable(manifest: Manifest, config: PruningConfig) -> None:
    """Refuse importance from LoRA gradients if it gives no scores for some units.

    Raises:
        ConfigError: a group has no LoRA target.
    """
    if config.importance != "lora":
        return
    scored = {
        (target.layer, prune.group)
        for target in manifest.targets
        for prune in (target.out_prune, target.in_prune)
        if prune is not None
    }
    for group in manifest.groups:
        if (group.layer, group.group) not in scored:
            msg = (
                f'importance = "lora" needs LoRA factors on the {group.group} of every layer, and this artifact has '
                'none there: export it with more targets, or take importance = "magnitude"'
            )
            raise ConfigError(msg)
