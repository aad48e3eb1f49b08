"""Split tuning with frozen lower blocks: devices send activations once, the server tunes the upper blocks on them.

In the form of SplitFrozen (arXiv 2503.18986). In each round the server takes the global adapter, tunes it on the
activations of each device in turn, and averages the upper parts by examples: one model, and an adapter for each device,
as in arXiv 2506.02940. No device's adapter begins where another's ended, so the order in which they are served changes
no bit of the result.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.aggregation import Aggregated, change_norm, check_bounds
from broker_server.methods.method import AssignedWork, Combined, Method, MethodContext, Reply
from broker_server.methods.pruning.scores import Scores
from broker_server.methods.tables import AUTOMATIC, SplitConfig
from broker_server.methods.training import TrainingConfig
from broker_server.options import options_of
from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.errors import DivergedError
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats import names
from edge_runtime.formats.activations import Form, decode_activations
from edge_runtime.formats.adapter import Array
from edge_runtime.formats.manifest import Manifest
from edge_runtime.wire.arms import RANK, Axes
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, SplitWork, Work

if TYPE_CHECKING:
    from broker_server.methods.split.tuning import UpperTuner

logger = logging.getLogger(__name__)


class Split(Method):
    """Upper factors and the head, tuned here on what devices sent in the first round that they were there."""

    work_type = "split"
    asks: ClassVar[str] = "one forward pass of the lower blocks for each example, once in the run; activations go up"
    asks_once = True
    sends_examples = True
    has_step_times = False
    axes = Axes((RANK,))
    default_arms = "8"
    uses = frozenset({*options_of(TrainingConfig), *options_of(SplitConfig)})

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._cut = _cut(context.tables.split_tuning.cut, context.manifest)
        self._upper = frozenset(
            [
                *(
                    name
                    for target in context.manifest.targets
                    if target.layer >= self._cut
                    for name in (names.lora_a(target.module), names.lora_b(target.module))
                ),
                *(dense.name for dense in context.manifest.dense),
            ]
        )

    @classmethod
    def check_settings(cls, settings: Mapping[str, object], manifest: Manifest | None = None) -> None:
        """Refuse what is not built, and a cut that the model does not have; see :meth:`Method.check_settings`."""
        if not settings["freeze_lower"]:
            msg = "--freeze-lower is off, but method split does not tune lower blocks on devices yet: give it"
            raise ConfigError(msg)
        if settings["update_transforms"]:
            msg = "--update-transforms apply to a trained change, but devices of method split train nothing: leave out"
            raise ConfigError(msg)
        cut = int(str(settings["cut"]))
        if cut == 0:
            msg = "--cut is 0, but a device runs at least one block: give 1 or more, or -1 for half of the blocks"
            raise ConfigError(msg)
        cls.check_one_arm(settings, "split tuning")
        if manifest is not None:
            try:
                Form.of(manifest, "", _cut(cut, manifest), "int8", 1)
            except TensorError as error:
                msg = f"--cut is {cut}: {error}"
                raise ConfigError(msg) from error

    def check_initial(self, model: Aggregated) -> None:
        """Devices run the lower blocks without an adapter; see :meth:`Method.check_initial`."""
        below = (target for target in self._manifest.targets if target.layer < self._cut)
        if any(model.adapter[names.lora_b(target.module)].any() for target in below):
            msg = (
                f"the adapter to start from changes blocks below the cut of {self._cut}, which devices of method split "
                "run as they are: leave --adapter out, or give a lower --cut"
            )
            raise ConfigError(msg)

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """One pass of the lower blocks, nothing pruned; see :meth:`Method.ask`."""
        del key, at_once, model
        training = self._context.training
        work = SplitWork(
            cut=self._cut,
            dtype=self._context.tables.split_tuning.dtype,
            noise=self._context.tables.split_tuning.noise,
            batch_size=training.batch_size,
            max_length=training.max_length,
        )
        return AssignedWork.under_one_plan(work, arm, num_steps=1)

    def start_kind(self, work: Work) -> Hashable:
        """All devices start from nothing; see :meth:`Method.start_kind`."""
        return _split(work).cut

    def start(self, model: Aggregated, work: Work) -> None:
        """Lower blocks have no adapter; see :meth:`Method.start`."""

    # ---- what comes back ---------------------------------------------------------------------------------------------

    def most_bytes(self, work: Work) -> int:
        """As large a blob as may travel; see :meth:`Method.most_bytes`."""
        del work
        return limits.MAX_BLOB_BYTES

    def check(self, work: Work, blob: bytes, num_examples: int) -> None:
        """Refuse what are not activations of this model at this cut; see :meth:`Method.check`."""
        decode_activations(blob, self._form(work), num_examples)

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """Adapters tuned on each device's activations in turn, averaged by examples; see :meth:`Method.combine`.

        The activations of one device are in memory at a time, coded, and beside the model the upper adapter of each.
        A device on whose activations training diverges does not count in the round.
        """
        del rng
        tuned: dict[str, dict[str, Array]] = {}
        for reply in replies:
            if reply.num_examples == 0:
                continue
            try:
                tuned[reply.device_id] = self._tuned(round_number, before, reply)
            except (DivergedError, AggregationError) as error:
                logger.warning("round %d does not count device %s: %s", round_number, reply.device_id, error)
        if not tuned:
            msg = f"tuning on the activations of {len(replies)} devices gave no adapter: lower the learning rate"
            raise AggregationError(msg)
        weights = {reply.device_id: reply.num_examples for reply in replies}
        ordered = sorted(tuned)
        adapter = dict(before.adapter)
        for name in self._upper:
            values = np.stack([tuned[device_id][name].astype(np.float64) for device_id in ordered])
            shares = [weights[device_id] for device_id in ordered]
            adapter[name] = np.average(values, axis=0, weights=shares).astype(np.float32)
        check_bounds(self._manifest, adapter)
        deltas = {
            device_id: change_norm(self._manifest, before.adapter, {**before.adapter, **upper})
            for device_id, upper in tuned.items()
        }
        return Combined(
            model=Aggregated(adapter=adapter, merged=before.merged, memory=before.memory),
            importance=importance,
            deltas=deltas,
        )

    def _tuned(self, round_number: int, before: Aggregated, reply: Reply) -> dict[str, Array]:
        """Upper tensors after local steps from the global adapter on a device's activations.

        Raises:
            DivergedError: training left the finite numbers.
            AggregationError: it went beyond every bound.
        """
        blob = reply.read()
        held = decode_activations(blob, self._form(reply.work))
        del blob
        hyper = self._context.hyper_parameters(round_number, reply.device_id)
        adapter, loss = self._tuner.tune(before.adapter, held, hyper, round_number)
        upper = {name: adapter[name].copy() for name in self._upper}
        check_bounds(self._manifest, upper)
        logger.info("round %d: tuned on %s, loss %.4f", round_number, reply.device_id, loss)
        return upper

    @functools.cached_property
    def _tuner(self) -> UpperTuner:
        from broker_server.methods.split.tuning import UpperTuner  # noqa: PLC0415 - onnxruntime: not for --help

        context = self._context
        return UpperTuner(self._artifact, self._cut, context.max_rank, context.num_threads)

    @property
    def _artifact(self) -> Artifact:
        if self._context.artifact is None:
            msg = "method split trains on the server, and was given no artifact"
            raise ConfigError(msg)
        return self._context.artifact

    def _form(self, work: Work) -> Form:
        asked = _split(work)
        if asked.cut != self._cut:
            msg = f"assignment asks for activations after {asked.cut} blocks, the cut is now {self._cut}: start anew"
            raise MessageError(msg)
        return Form.of(self._manifest, self._artifact.digest, asked.cut, asked.dtype, asked.max_length)


def _cut(given: int, manifest: Manifest) -> int:
    """Number of blocks of a setting."""
    return max(1, manifest.num_layers // 2) if given == AUTOMATIC else given


def _split(work: Work) -> SplitWork:
    if not isinstance(work, SplitWork):
        msg = f"assignment asks for {type(work).__name__}, but this run's method is split: start a new run"
        raise MessageError(msg)
    return work
