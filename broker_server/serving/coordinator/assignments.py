"""The assignments of a round: each device's work, and the blobs that devices start from.

The work of each assignment is stored, also on disk: an update is read under the work that was *sent*, even after a
restart of the coordinator.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Final

import msgspec

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import AssignedWork, Method
from broker_server.methods.rounds.types import SendAssignment
from edge_runtime.errors import FedSpineError, MessageError, TensorError
from edge_runtime.formats.payload import encode_payload
from edge_runtime.formats.tensors import WireDtype
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import Assignment, AssignmentKey, BlobRef

logger: Final = logging.getLogger(__name__)


class Assigner:
    """Assignments and blobs of one run; a blob is made once in a round for all devices with the same start."""

    def __init__(
        self, method: Method, wire_dtype: WireDtype, *, works: Mapping[AssignmentKey, AssignedWork] | None = None
    ) -> None:
        """Start from the stored assignments.

        Args:
            method: of the devices' work.
            wire_dtype: type of tensors on the wire.
            works: assignments of a round that had begun.
        """
        self._method = method
        self._wire_dtype = wire_dtype
        self._works = dict(works or {})
        self._blobs: dict[Hashable, tuple[BlobRef | None, bytes]] = {}

    def work(self, key: AssignmentKey) -> AssignedWork | None:
        """Return the work that was assigned under ``key``, in this round or for the run; None = nothing was sent."""
        return self._works.get(key)

    def assign(self, command: SendAssignment, model: Aggregated, *, at_once: bool) -> tuple[Assignment, bytes]:
        """Return the assignment of a device and the blob that it starts from; repeated calls return the same.

        The blob is empty if the device needs none.

        Args:
            command: the command to send the assignment.
            model: global model of the round.
            at_once: whether the arm's full ratio is used from the first step on, without a ramp.
        """
        key = command.key
        if key not in self._works:
            self._works[key] = self._method.ask(key, command.arm, at_once=at_once, model=model)
        work = self._works[key].work
        kind = self._method.start_kind(work)
        if kind not in self._blobs:
            dtype = "float32" if self._method.is_start_exact else self._wire_dtype
            payload = self._method.start(model, work)
            data = b"" if payload is None else encode_payload(payload, dtype)
            self._blobs[kind] = chunks.describe(data) if data else None, data
        ref, blob = self._blobs[kind]
        return Assignment(key=key, deadline_s=command.deadline_s, payload=ref, work=work), blob

    def sent(self, key: AssignmentKey, sent_at: float, *, bytes_down: int, most_examples: int | None) -> AssignedWork:
        """Record the time and size of a sent assignment, and the device's number of examples.

        Returns:
            The part of the work that is stored.
        """
        work = msgspec.structs.replace(
            self.assigned(key), sent_at=sent_at, bytes_down=bytes_down, most_examples=most_examples
        )
        self._works[key] = work
        return msgspec.structs.replace(work, work=self._method.kept(work.work))

    def clear(self) -> tuple[str, ...]:
        """Forget the assignments and blobs of a round that is over; returns the blobs' digests.

        The work of devices that are asked once is kept, because their replies are read in later rounds too.
        """
        digests = tuple(ref.digest for ref, _ in self._blobs.values() if ref is not None)
        self._blobs.clear()
        if not self._method.asks_once:
            self._works.clear()
        return digests

    def check_size(self, blob: BlobRef, key: AssignmentKey) -> None:
        """Refuse an update by its size before it is pulled, if it is larger than any reply to its assignment.

        Raises:
            MessageError: the update is too large, or nothing was assigned.
        """
        most = self._method.most_bytes(self.assigned(key).work)
        if blob.size_bytes > most:
            msg = f"update is {blob.size_bytes} bytes, at most {most} are expected"
            raise MessageError(msg, device_id=key.device_id, round_number=key.round_number)

    def check_update(self, blob: bytes, key: AssignmentKey, num_examples: int) -> None:
        """Refuse an update that does not fit the assigned work.

        Raises:
            TensorError: the update is malformed, or its names, shapes or values do not fit the work.
            AggregationError: its values are beyond every bound.
            MessageError: nothing was assigned.
        """
        work = self.assigned(key).work
        try:
            self._method.check(work, blob, num_examples)
        except FedSpineError:
            raise
        except Exception as error:  # a package's check of bytes from outside must not end the run
            logger.exception("round %d: the check of the update of %s failed", key.round_number, key.device_id)
            msg = f"the check of the update failed ({type(error).__name__}: {error})"
            raise TensorError(msg) from error

    def assigned(self, key: AssignmentKey) -> AssignedWork:
        """Return the work that was assigned under ``key`` in this round.

        Raises:
            MessageError: nothing was assigned.
        """
        work = self._works.get(key)
        if work is None:
            msg = f"no assignment was sent to {key.device_id} in round {key.round_number} as attempt {key.attempt}"
            raise MessageError(msg, device_id=key.device_id, round_number=key.round_number)
        return work
