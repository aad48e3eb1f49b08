"""Replies of devices, for tests of methods."""

from __future__ import annotations

import functools
from pathlib import Path

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import Method, Reply
from broker_server.serving.storage.stored_tensors import StoredTensors
from edge_runtime.formats.payload import Payload
from edge_runtime.wire.work import Work


def reply(folder: Path, made: Method, work: Work, device_id: str, blob: bytes, num_examples: int = 10) -> Reply:
    """An accepted update: checked, and on disk."""
    made.check(work, blob, num_examples)
    assert len(blob) <= made.most_bytes(work)
    path = folder / f"{device_id}.safetensors"
    path.write_bytes(blob)
    return Reply(
        device_id=device_id,
        work=work,
        num_examples=num_examples,
        tensors=StoredTensors.of(path, blob),
        read=functools.partial(bytes, blob),
    )


def start_of(made: Method, model: Aggregated, work: Work) -> Payload:
    """Return what a device starts from, which must be something."""
    payload = made.start(model, work)
    assert payload is not None
    return payload
