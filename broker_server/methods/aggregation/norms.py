"""Frobenius norms of products of factors, without the products: ||B A||^2 = trace((B'B)(A A'))."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker_server.methods.aggregation.targets import Float32, Float64
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest


def product_norm(a: Float64, b: Float64) -> float:
    """Frobenius norm of ``b @ a`` for A ``[r, I]``, B ``[O, r]``."""
    return float(np.sqrt(max(0.0, np.sum((b.T @ b) * (a @ a.T)))))


def change_norm(manifest: Manifest, sent: Mapping[str, Float32], received: Mapping[str, Float32]) -> float:
    """Return the change of an adapter by training: the norm of B'A' - B A over all targets (without lora_scaling).

    Args:
        manifest: the artifact's manifest.
        sent: adapter that a device started from.
        received: update of the device, under the same plan and rank; missing A factors are those of ``sent``.
    """
    squares = []
    for target in manifest.targets:
        key_a, key_b = names.lora_a(target.module), names.lora_b(target.module)
        a = [np.asarray(value, np.float64) for value in (received.get(key_a, sent[key_a]), sent[key_a])]
        b = [np.asarray(value, np.float64) for value in (received[key_b], sent[key_b])]
        # In increments, whose norms do not cancel: B'A' - B A = (B' - B) A' + B (A' - A).
        left, right = np.concatenate([b[0] - b[1], b[1]], axis=1), np.concatenate([a[0], a[0] - a[1]])
        squares.append(product_norm(right, left) ** 2)
    return float(np.sqrt(sum(squares)))
