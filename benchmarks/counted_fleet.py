"""A fleet in this process whose floating-point operations and bytes are counted, for ``benchmarks.zero_order``.

Both sides are the real ones: the server's method asks, checks and combines, and the device's method begins, rebuilds,
trains and encodes. Between them there is no link: an assignment and an update count with the bytes that they have as
messages, and a payload where the device pulls it. Devices share graphs, and have their examples and their state apart.

Operations are those of matrix products (:mod:`broker_server.benchmark.products`) at the padded shapes that ran: of each
forward pass of zero-order work, and of each training batch. A probe's are those of a forward pass of each example
without padding, also where its features were kept by an earlier run. Noise and sums are not counted: at 40,000 tuned
elements a step of 4 perturbations takes a millionth of a forward pass. Nor is evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from broker_server.benchmark.products import products_of_forward, products_of_step, total_flops
from broker_server.experiments.run.settings import RunSettings
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.by_name import method_of
from broker_server.methods.method import Method, MethodContext, Reply
from broker_server.methods.pruning.plans import Plans
from broker_server.methods.rounds.types import SendAssignment
from broker_server.serving.coordinator.assignments import Assigner
from broker_server.serving.storage.stored_tensors import StoredTensors
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.methods.lora.method import Lora
from edge_runtime.agent.methods.probe.method import Probe
from edge_runtime.agent.methods.protocol import Surroundings
from edge_runtime.agent.methods.zero_order.kept import Kept
from edge_runtime.agent.methods.zero_order.method import ZeroOrder
from edge_runtime.agent.pauses import Pauses
from edge_runtime.agent.settings import WorkSettings
from edge_runtime.board.guard import PauseLimits
from edge_runtime.board.sensors import Sensors
from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.dataset import Batch, Dataset, Int64
from edge_runtime.engine.frozen import Array, FrozenWeights
from edge_runtime.engine.staged import Lowered, StagedGraphs, StagedModel
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire import chunks
from edge_runtime.wire.measures import Measurements
from edge_runtime.wire.messages import Assignment, AssignmentKey, Update, encode_message
from edge_runtime.wire.work import LoraWork, ProbeWork, Work, ZeroOrderWork

logger = logging.getLogger(__name__)

MEMORY_LIMIT: Final = 4 * 2**30
PULL_RATE: Final = 1e6
"""Bytes a second that devices say they pull at: by it and the noise's measured rate they choose to do rounds again."""
NOTHING_MEASURED: Final = Measurements(
    train_s=1.0,
    step_s_p50=1.0,
    step_s_p95=1.0,
    importance_s=0.0,
    fetch_s=0.0,
    prepare_s=0.0,
    evaluate_s=0.0,
    peak_rss_bytes=0,
    bytes_up=0,
    bytes_down=0,
)


class Counts(Counter[str]):
    """``flops``, ``bytes_up``, ``bytes_down`` of all devices."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawn(Dataset):
    """Examples that note the shape of each batch that is made of them."""

    shapes: list[tuple[int, int]]

    @classmethod
    def of(cls, dataset: Dataset) -> Drawn:
        """The same examples."""
        fields = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
        return cls(**fields, shapes=[])

    def batch(self, indices: Int64) -> Batch:
        """See :meth:`Dataset.batch`."""
        made = Dataset.batch(self, indices)
        batch_size, length = made.input_ids.shape
        self.shapes.append((batch_size, length))
        return made


class CountedGraphs(StagedGraphs):
    """Graphs whose models count the operations of their passes."""

    def __init__(self, artifact: Artifact, counts: Counts) -> None:
        super().__init__(artifact, num_threads=1)
        self._counts = counts

    def model(self, weights: FrozenWeights, layout: AdapterLayout, lora_scaling: float) -> CountedModel:
        """See :meth:`StagedGraphs.model`."""
        return CountedModel(self, weights, layout, lora_scaling, self._counts)


class CountedModel(StagedModel):
    """Counts the passes of zero-order work."""

    def __init__(
        self,
        graphs: StagedGraphs,
        weights: FrozenWeights,
        layout: AdapterLayout,
        lora_scaling: float,
        counts: Counts,
    ) -> None:
        super().__init__(graphs, weights, layout, lora_scaling)
        self._counts = counts
        self._num_layers = graphs.manifest.num_layers
        self._flops = ForwardFlops(graphs.manifest, rank_of(layout))

    def lower(self, batch: Batch, params: Array, cut: int) -> Lowered:
        """See :meth:`StagedModel.lower`."""
        self._counts["flops"] += self._flops.of(batch.input_ids.shape, range(cut), is_scored=False)
        return super().lower(batch, params, cut)

    def upper(self, lowered: Lowered, batch: Batch, params: Array, cut: int) -> tuple[float, int]:
        """See :meth:`StagedModel.upper`."""
        layers = range(cut, self._num_layers)
        self._counts["flops"] += self._flops.of(batch.input_ids.shape, layers, is_scored=True)
        return super().upper(lowered, batch, params, cut)


class ForwardFlops:
    """Operations of forward passes; each kind of pass is counted once.

    Args:
        manifest: of the model.
        rank: of its factors; 0 = it has none.
    """

    def __init__(self, manifest: Manifest, rank: int) -> None:
        self._manifest, self._rank = manifest, rank
        self._known: dict[tuple[tuple[int, ...], range, bool], int] = {}

    def of(self, shape: tuple[int, ...], layers: range, *, is_scored: bool) -> int:
        """A batch ``(examples, tokens)`` through some blocks, and through the head where it is scored."""
        key = shape, layers, is_scored
        if key not in self._known:
            batch_size, length = shape
            made = products_of_forward(self._manifest, self._rank, batch_size, length, layers, is_scored=is_scored)
            self._known[key] = total_flops(made)
        return self._known[key]


def rank_of(layout: AdapterLayout) -> int:
    """That of all factors."""
    return next(shape[0] for name, shape in layout.shapes.items() if names.is_lora_a(name))


class Fleet:
    """One run: devices, and the server's method.

    Args:
        artifact: the opened artifact.
        settings: of the run.
        datasets: examples by device.
        folder: for replies, states of devices, and features that devices share (``probe``).
    """

    def __init__(
        self, artifact: Artifact, settings: RunSettings, datasets: Mapping[str, Dataset], folder: Path
    ) -> None:
        self.counts = Counts()
        self.losses: list[float] = []
        """Of the steps of the last round, on their batches."""
        self.settings = settings
        self._artifact, self._folder = artifact, folder
        self._states = Path(tempfile.mkdtemp(prefix="states-", dir=folder))  # no run takes up that of another
        self._datasets = {name: Drawn.of(dataset) for name, dataset in datasets.items()}
        self.method = make_method(artifact, settings)
        self._assigner = Assigner(self.method, settings.wire_dtype)
        work = WorkSettings(data=folder, num_holdout=0, num_threads=1, memory_limit_bytes=MEMORY_LIMIT, methods=folder)
        self._devices: dict[type[Work], Callable[[], Any]] = {
            ProbeWork: functools.cache(lambda: Probe(artifact, work)),
            LoraWork: functools.cache(lambda: Lora(artifact, work)),
            ZeroOrderWork: functools.cache(lambda: self._zero_order(work)),
        }

    def initial(self) -> Aggregated:
        """The model before training."""
        dense = self._artifact.initial() if self._artifact.manifest.dense else {}
        return self.method.initial(dense, np.random.default_rng([self.settings.seed, 0]))

    def play_round(self, number: int, model: Aggregated, num_devices: int | None = None) -> Aggregated:
        """The next model.

        Args:
            number: of the round.
            model: that devices start from.
            num_devices: devices that take part, drawn from all; None = all of them.
        """
        self.losses = []
        rng = np.random.default_rng([self.settings.seed, number])
        drawn = rng.permutation(list(self._datasets))[:num_devices]
        replies = [self._reply(str(name), number, model) for name in sorted(drawn)]
        self._assigner.clear()
        return self.method.combine(number, model, {}, replies, rng).model

    def _reply(self, name: str, number: int, model: Aggregated) -> Reply:
        key = AssignmentKey(run_id="counted", round_number=number, device_id=name, attempt=1)
        command = SendAssignment(key=key, arm=self.settings.arms[0], deadline_s=600.0)
        assignment, payload = self._assigner.assign(command, model, at_once=False)
        blob = self._work(name, assignment, payload)
        self.method.check(assignment.work, blob, len(self._datasets[name]))
        path = self._folder / f"{name}.reply"
        path.write_bytes(blob)
        return Reply(
            device_id=name,
            work=assignment.work,
            num_examples=len(self._datasets[name]),
            tensors=StoredTensors.of(path, blob),
            read=path.read_bytes,
        )

    def _work(self, name: str, assignment: Assignment, payload: bytes) -> bytes:
        """Do the device's part of an assignment; return the bytes of its reply."""
        work, dataset = assignment.work, self._datasets[name]
        device = self._devices[type(work)]()
        state = self._states / name
        state.mkdir(exist_ok=True)
        if isinstance(device, ZeroOrder):
            device.kept = Kept(state)
        pauses = Pauses(PauseLimits(), Sensors())
        around = Surroundings(
            checkpoints=Checkpoints(state, 0),
            clock=pauses.working_s,
            paused=pauses.count(),
            say=logger.debug,
            check=lambda: None,
            pull_rate=PULL_RATE,
        )
        rebuilt = device.rebuild(assignment, work, around) if isinstance(device, ZeroOrder) else None
        if rebuilt is None:
            self.counts["bytes_down"] += len(payload)
        execution = device.begin(assignment, work, payload if rebuilt is None else rebuilt, around).start(dataset)
        dataset.shapes.clear()
        trained = execution.train(dataset, (None, 0.0), lambda _, loss: self.losses.append(loss))
        self._count_batches(work, dataset)
        blob: bytes = execution.encode(self.settings.wire_dtype)
        self._count_messages(assignment, blob, len(dataset), trained.mean_loss)
        return blob

    def _count_batches(self, work: Work, dataset: Drawn) -> None:
        """Operations of work that is not counted pass by pass."""
        manifest = self._artifact.manifest
        if isinstance(work, LoraWork):
            plan = work.plan.open(manifest)
            self.counts["flops"] += sum(
                total_flops(products_of_step(manifest, plan, work.arm.rank, *shape)) for shape in dataset.shapes
            )
        elif isinstance(work, ProbeWork):
            flops, layers = ForwardFlops(manifest, 0), range(manifest.num_layers)
            self.counts["flops"] += sum(
                flops.of((1, int(length)), layers, is_scored=True) for length in dataset.lengths
            )

    def _count_messages(self, assignment: Assignment, blob: bytes, num_examples: int, loss: float) -> None:
        is_inline = len(blob) <= limits.MAX_INLINE_BYTES
        update = Update(
            key=assignment.key,
            blob=None if is_inline else chunks.describe(blob),
            inline=blob if is_inline else b"",
            num_examples=num_examples,
            train_loss=loss,
            measurements=NOTHING_MEASURED,
        )
        self.counts["bytes_down"] += len(encode_message(assignment))
        self.counts["bytes_up"] += len(encode_message(update)) + (0 if is_inline else len(blob))

    def _zero_order(self, work: WorkSettings) -> ZeroOrder:
        device = ZeroOrder(self._artifact, work)
        device.graphs = CountedGraphs(self._artifact, self.counts)
        return device


def make_method(artifact: Artifact, settings: RunSettings) -> Method:
    """The server's side of the settings' method."""
    manifest = artifact.manifest
    ones = {(group.layer, group.group): np.ones(group.num_units, np.float32) for group in manifest.groups}
    context = MethodContext(
        manifest=manifest,
        plans=Plans(manifest, ones, settings.pruning.policy),
        training=settings.training,
        learning_rate_at=settings.learning_rate_at,
        is_deploy=lambda _: False,
        pruning=settings.pruning,
        aggregation=settings.aggregation,
        max_rank=settings.max_rank,
        seed=settings.seed,
        tables=settings,
    )
    return method_of(settings.method)(context)
