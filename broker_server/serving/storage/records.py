"""Records of a run's rounds: the coordinator writes them to the store; a later coordinator and the report read them."""

from __future__ import annotations

import msgspec

from edge_runtime.wire.measures import LocalEvaluation, Measurements
from edge_runtime.wire.work import Arm


class EvaluationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of a global adapter on the server's held-out examples."""

    loss: float
    """Mean negative log-likelihood of a target, nats; finite in every record that is kept."""
    accuracy: float
    """Share of targets predicted right, in [0, 1]."""
    num_targets: int
    is_complete: bool
    """Whether all held-out examples were used, or a sample."""
    evaluate_s: float
    on_all: EvaluationRecord | None = None
    """In the last round, where rounds are measured on a sample: the same on all held-out examples."""

    @property
    def best_known(self) -> EvaluationRecord:
        """On all held-out examples, if that was measured."""
        return self.on_all or self


class MethodBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a method's own messages in one round; a device's :class:`Measurements` count all that it sent."""

    bytes_up: int
    """Payload bytes of the reply: the update and its chunks, without status messages and requests."""


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part in one round, as the store keeps it and the report shows it."""

    device_id: str
    attempt: int
    """Assignments that it got in this round; all but the last were refused as infeasible."""
    arm: Arm
    """Arm of the last of them, as the scheduler chose it."""
    sparsity: float
    outcome: str
    """``accepted``, ``rejected``, ``failed``, ``lost`` or ``timed_out``."""
    detail: str
    num_examples: int | None
    """Its training examples: its weight in the aggregation; None if no update was accepted."""
    train_loss: float | None
    """Mean loss over its local steps; None as above."""
    measurements: Measurements | None
    """Measurements of the device; None as above."""
    evaluation: LocalEvaluation | None
    """Quality on its own held-out examples; None as above, and where it held none out."""
    reason: str | None = None
    """Of the last failure: a :class:`edge_runtime.wire.messages.FailureReason`."""
    num_steps: int | None = None
    """Optimizer steps of the assignment."""
    completion_s: float | None = None
    """From assignment to stored update: emulated where devices are, else wall time; None if neither is known."""
    device_class: str | None = None
    """Class of an emulated device."""
    emulated_s: float | None = None
    """Time of its part in the round on the virtual clock; None if nothing is emulated, or nothing was trained."""
    adapter_delta: float | None = None
    """Frobenius norm of the change of B A, over all targets."""
    work: str = ""
    """Kind of work that it was asked for, a tag of the union of work; empty if nothing was sent."""
    method: MethodBytes | None = None
    """Bytes of the work itself; None as in ``num_examples``."""
    not_finite: int | None = None
    """Scalars that counted as 0, because its measurement was not finite; None if none are counted."""


class KeptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The best round of a run, which it keeps in place of the last one."""

    round_number: int
    evaluation: EvaluationRecord
    """On all held-out examples."""
    sparse: EvaluationRecord | None = None
    """The same of the sub-model at the run's sparsity."""


class FileDigests(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 of the files of a round, hexadecimal; None = not known."""

    adapter: str | None = None
    importance: str | None = None


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished round; ``round_number`` 0 is the evaluation before training and has no devices."""

    round_number: int
    seconds: float
    """Wall time of the round, aggregation and evaluation included."""
    elapsed_s: float
    """Time since training began, summed over interruptions, at the end of the round."""
    evaluation: EvaluationRecord | None
    devices: tuple[DeviceRecord, ...]
    sparse: EvaluationRecord | None = None
    """Quality of the sub-model at the run's sparsity, cut out of the same adapter."""
    files: FileDigests = FileDigests()
    """Digests of the files that were written after the round; empty in records of earlier releases."""
    is_deploy: bool = False
    """Whether all devices trained the plan that is deployed."""
    emulated_s: float | None = None
    """The round on the virtual clock: its slowest device, at most the deadline; None if nothing is emulated."""
    elapsed_emulated_s: float | None = None
    """The virtual clock at the end of the round."""
    kept: KeptRecord | None = None
    """In the last round, where an earlier one was better and the best is to be kept."""
    discarded: str = ""
    """Reason why the accepted updates could not be used; empty = they were used, or there were none."""
    is_unchanged: bool = False
    """Whether updates were aggregated and the adapter is that of the round before, to the last bit."""
    num_standing: int = 0
    """Updates of earlier rounds that count in its adapter too, of methods that ask a device once."""

    @property
    def was_used(self) -> bool:
        """Return whether an update of the round counts in its adapter."""
        is_any = self.num_standing > 0 or any(device.outcome == "accepted" for device in self.devices)
        return is_any and not self.discarded
