"""``report.json``: typed, versioned; its JSON schema is docs/report.schema.json. Paths are relative to the run.

A run measures one figure of quality: ``accuracy`` (share of held-out examples right, in [0, 1]) or ``perplexity`` (exp
of the mean loss of a held-out token). The other field is absent.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from broker_server.serving.report.encoding import decode
from broker_server.serving.storage.records import DeviceRecord

REPORT_JSON: Final = "report.json"
REPORT_PAGE: Final = "report.html"
"""In a run's directory."""


class RoundEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One round; 0 is the evaluation before training."""

    round_number: int
    accuracy: float | UnsetType = UNSET
    perplexity: float | UnsetType = UNSET
    loss: float | None
    """Mean held-out loss, nats."""
    num_targets: int
    """Held-out examples (classification) or tokens (language modelling) that it was measured on; 0 = not measured."""
    seconds: float
    """Wall time of the round, aggregation and evaluation included."""
    devices: tuple[DeviceRecord, ...]
    accuracy_at_sparsity: float | UnsetType = UNSET
    """Of the sub-model at the run's ``sparsity``, where it was measured."""
    perplexity_at_sparsity: float | UnsetType = UNSET
    loss_at_sparsity: float | None = None
    is_deploy: bool = False
    """Whether all devices trained the plan that is deployed."""
    emulated_s: float | None = None
    """Length of the round on the virtual clock: emulated; null if nothing is."""
    elapsed_emulated_s: float | None = None
    """The virtual clock at its end: emulated."""
    discarded: str = ""
    """Reason why the accepted updates could not be used; empty = they were used, or there were none."""
    is_unchanged: bool = False
    """Whether updates were used and the adapter is that of the round before, to the last bit."""
    num_standing: int = 0
    """Updates of earlier rounds that count in its adapter too, of methods that ask a device once."""

    @property
    def was_used(self) -> bool:
        """Return whether an update of the round counts in its adapter."""
        is_any = self.num_standing > 0 or any(device.outcome == "accepted" for device in self.devices)
        return is_any and not self.discarded


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Final figures of the run: those of the adapter that it keeps, on all held-out examples."""

    accuracy: float | UnsetType = UNSET
    perplexity: float | UnsetType = UNSET
    loss: float | None
    """Null if the server has no held-out examples."""
    seconds: float
    """Wall time of the whole job, all its sessions and steps."""
    bytes_up: int
    """Payload bytes from devices, all rounds, as said with accepted updates."""
    bytes_down: int
    """Payload bytes to devices, all rounds, artifact included, as said with accepted updates."""
    accuracy_at_sparsity: float | UnsetType = UNSET
    """Of the sub-model at the run's ``sparsity``, which would be deployed, before quantisation."""
    perplexity_at_sparsity: float | UnsetType = UNSET
    loss_at_sparsity: float | None = None
    emulated_s: float | None = None
    """All rounds on the virtual clock: emulated; null if nothing is."""
    round_number: int = 0
    """The round whose adapter is kept: the last one, or with ``--keep best`` the best; 0 in older reports."""
    num_targets: int = 0
    """Held-out examples (classification) or tokens (language modelling) behind the figures; 0 in older reports."""


class Compact(msgspec.Struct, frozen=True, kw_only=True):
    """The compact model."""

    path: str
    bytes: int
    """Size of the files that a device needs."""
    pruning_ratio: float
    sparsity: float
    quantization: str | None
    num_parameters: int
    accuracy: float | UnsetType = UNSET
    perplexity: float | UnsetType = UNSET
    """Absent where ``loss`` is null."""
    loss: float | None
    """Null if it is not finite: quantisation, or pruning, broke the model."""
    latency_ms: float
    """Median time of one ``latency_unit``, batch 1, on this machine."""
    latency_unit: Literal["example", "token"]
    sample: str | UnsetType = UNSET
    """Text that it generated (language modelling)."""
    sample_prompt: str | UnsetType = UNSET
    num_targets: int = 0
    """Held-out examples or tokens behind the figures; those of the rounds where nothing was removed or quantised; 0 in
    older reports."""


class DeviceData(msgspec.Struct, frozen=True, kw_only=True):
    """Training examples of one device."""

    device_id: str
    num_examples: int
    classes: dict[str, int]
    """Examples of each class, or of each key of a by-key split (the largest ones)."""


class DataEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The data that was used for training and evaluation."""

    source: str
    num_train: int
    num_test: int
    labels: tuple[str, ...]
    devices: tuple[DeviceData, ...]


class FleetDrift(msgspec.Struct, frozen=True, kw_only=True):
    """A class changed its speed."""

    from_round: int
    factor: float
    """Steps took so many times as long as at the start."""


class FleetClass(msgspec.Struct, frozen=True, kw_only=True):
    """A class of emulated devices."""

    name: str
    device_ids: tuple[str, ...]
    compute_factor: float
    """A step took so many times as long as on one thread of the machine that was calibrated: emulated."""
    memory_mb: int
    """Cap, MiB, that its processes kept to; 0 = none."""
    uplink_mbit_s: float
    downlink_mbit_s: float
    availability: float
    drift: tuple[FleetDrift, ...]


class FleetEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The emulated fleet."""

    classes: tuple[FleetClass, ...]
    jitter: float
    """Standard deviation of the logarithm of compute times."""
    deadline_s: float
    """Longest round on the virtual clock; 0 = none."""


class OverFirstWork(msgspec.Struct, frozen=True, kw_only=True):
    """Gain over the model that the work of a run started from and that other work made, on the same examples."""

    work: str
    """Kind of that other work."""
    round_number: int
    """The round that it was made in."""
    accuracy: float
    """After that round."""
    loss: float
    accuracy_gain: float
    """Accuracy of the kept round less this one; below 0 = it lost."""
    loss_fall: float
    """This loss less that of the kept round."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of ``report.json``."""

    schema_version: Literal[2] = 2
    run_id: str
    task: Literal["text-classification", "causal-lm"]
    model_name: str
    artifact_digest: str
    created_at: float
    """Unix seconds, UTC."""
    final: Outcome
    rounds: tuple[RoundEntry, ...]
    compact: Compact | None
    steps: dict[str, float]
    """Wall time of each step of the job, seconds."""
    data: DataEntry
    config: dict[str, str | int | float | bool]
    """Settings of the run: the options of ``fedspine run``."""
    environment: dict[str, str]
    """Versions, processor, cores."""
    fleet: FleetEntry | None = None
    """Classes of the emulated devices; null if nothing is emulated."""
    warnings: tuple[str, ...] = ()
    """Warnings about this run for the user, one line each; empty if there is nothing to warn of."""
    over_first_work: OverFirstWork | None = None
    """Of a run that began with work of another kind; null for others, and where either was not measured."""

    @property
    def kept(self) -> RoundEntry:
        """The round whose adapter is kept, on the same examples as round 0, so that the two can be compared."""
        return next(entry for entry in self.rounds if entry.round_number == self.final.round_number)

    @property
    def beside_compact(self) -> Outcome | RoundEntry:
        """The whole model's figures on the examples that the compact model was measured on."""
        is_sampled = self.kept.num_targets != self.final.num_targets
        is_on_sample = is_sampled and self.compact is not None and self.compact.num_targets == self.kept.num_targets
        return self.kept if is_on_sample else self.final

    @property
    def target_unit(self) -> str:
        """Return the unit that ``num_targets`` counts."""
        return "tokens" if self.task == "causal-lm" else "examples"


def decode_report(data: bytes) -> Report:
    """Read a report.

    Raises:
        ReportError: not a report of this schema version.
    """
    return decode(data, Report, what="report")
