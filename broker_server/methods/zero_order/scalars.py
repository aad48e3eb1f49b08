"""The common part of zero-order methods on the server: replies of scalars, and the initial head from the probe."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

import numpy as np

from broker_server.errors import AggregationError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import Method, MethodContext, Reply
from broker_server.methods.probe.method import LogitProbe
from broker_server.methods.probe.ridge import PENALTY
from broker_server.methods.zero_order.combine import LARGEST, Float64, typical_magnitude
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats.adapter import Array
from edge_runtime.formats.zero_order import SCALARS, decode_reply
from edge_runtime.wire.arms import RANK, Axes
from edge_runtime.wire.work import ProbeWork, SeedPoolWork, Work, ZeroOrderWork

HEADER_BYTES: Final = 4096
"""Allowance for the safetensors header of a reply, which has two tensors."""

ScalarWork = TypeVar("ScalarWork", ZeroOrderWork, SeedPoolWork)


class ScalarTuning(Method, Generic[ScalarWork]):
    """Base of methods whose devices send scalars; a first round with the probe's sums may give the initial head."""

    has_step_times = False
    is_start_exact = True
    axes = Axes((RANK,))
    default_arms = "8"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._probe = None
        if context.tables.zero_order.head == "probe" and context.manifest.task == "text-classification":
            training = dataclasses.replace(context.training, weight_decay=PENALTY)
            self._probe = LogitProbe(dataclasses.replace(context, training=training))

    @abc.abstractmethod
    def _asked(self, work: Work) -> ScalarWork:
        """Return work that asks for scalars.

        Raises:
            MessageError: the work is of another kind.
        """

    def _comparable(self, work: ScalarWork) -> ScalarWork:
        """Return the part of the work that is the same for all devices of a round."""
        return work

    # ---- assignments -------------------------------------------------------------------------------------------------

    def trained(self, work: Work) -> Mapping[str, tuple[int, ...]]:
        """The scalars, to which update transforms apply, but not the probe's sums; see :meth:`Method.trained`."""
        return {} if isinstance(work, ProbeWork) else {SCALARS: self._asked(work).scalars_shape}

    def before(self, model: Aggregated, work: Work, name: str) -> Array:
        """Zeros, because scalars of 0 change nothing; see :meth:`Method.before`."""
        del model, name
        return np.zeros(self._asked(work).scalars_shape, np.float32)

    # ---- replies -----------------------------------------------------------------------------------------------------

    def is_averaged(self, work: Work) -> bool:
        """True for scalars, False for the probe's sums; see :meth:`Method.is_averaged`."""
        return not isinstance(work, ProbeWork)

    def most_bytes(self, work: Work) -> int:
        """A float32 for each perturbation; see :meth:`Method.most_bytes`."""
        if isinstance(work, ProbeWork):
            return self._probe_of(work).most_bytes(work)
        return 4 * (int(np.prod(self._asked(work).scalars_shape)) + 1) + HEADER_BYTES

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Refuse a reply whose scalars do not fit the work, or exceed its bound; see :meth:`Method.check`."""
        if isinstance(work, ProbeWork):
            self._probe_of(work).check(work, blob, num_examples)
            return
        asked = self._asked(work)
        magnitude, largest = float(np.abs(decode_reply(blob, asked.scalars_shape).scalars).max()), asked.largest_scalar
        if largest is not None and magnitude > np.float32(largest):
            msg = f"a scalar has the magnitude {magnitude:g}, and was to be cut to {largest:g}"
            raise TensorError(msg)

    def _same_work(self, replies: Sequence[Reply]) -> ScalarWork:
        """Return the work of all devices of a round.

        Raises:
            AggregationError: their works differ, so their scalars belong to different perturbations.
        """
        first, *others = (reply.work for reply in replies)
        asked = self._comparable(self._asked(first))
        for work in others:
            if type(work) is not type(asked) or self._comparable(self._asked(work)) != asked:
                msg = "devices of this round were asked for different steps: settings changed within it"
                raise AggregationError(msg)
        return asked

    def _values(self, replies: Sequence[Reply], asked: ScalarWork) -> tuple[list[Reply], Float64, float]:
        """Return replies with examples by the device's name, their scalars, and these scalars' typical magnitude.

        Scalars are clipped here if the devices had no bound.

        Returns:
            Replies, values ``[replies, steps, perturbations]``, and a magnitude of 0 or more.

        Raises:
            AggregationError: no reply has examples.
        """
        ordered = sorted((reply for reply in replies if reply.num_examples > 0), key=lambda reply: reply.device_id)
        if not ordered:
            msg = f"{len(replies)} updates have no examples together: their total weight is zero"
            raise AggregationError(msg)
        values = np.stack([np.asarray(reply.tensors[SCALARS], np.float64) for reply in ordered])
        magnitude = typical_magnitude(values)
        if asked.largest_scalar is None and magnitude > 0:
            values = np.clip(values, -LARGEST * magnitude, LARGEST * magnitude)
        return ordered, values, magnitude

    def _probe_of(self, work: Work) -> LogitProbe:
        if self._probe is None:
            msg = f"assignment asks for {type(work).__name__}, and this run's head is not the probe's: start a new run"
            raise MessageError(msg)
        return self._probe
