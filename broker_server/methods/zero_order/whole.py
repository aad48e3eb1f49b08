"""Tuning of all weights on the server: a pool of seeds, and how far the model is along each (FedKSeed, 2312.06353).

Devices draw seeds of the pool for themselves and send a scalar for each. A step is a sum of noise, so the weighted mean
of the devices' models is the weighted mean of their coefficients, exactly; the model is K numbers whatever the rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Final

import msgspec
import numpy as np

from broker_server.errors import AggregationError, ConfigError
from broker_server.methods.aggregation import Aggregated
from broker_server.methods.method import AssignedWork, Combined, Reply
from broker_server.methods.pruning.scores import Scores
from broker_server.methods.zero_order.combine import MEDIAN_ROUNDS, largest_scalar
from broker_server.methods.zero_order.scalars import ScalarTuning
from broker_server.naming import option_name
from edge_runtime.bounds.limits import MAX_FACTOR
from edge_runtime.errors import MessageError, TensorError
from edge_runtime.formats import names
from edge_runtime.formats.manifest import Manifest
from edge_runtime.formats.payload import Payload
from edge_runtime.formats.seed_pool import SeedPool, coefficients_of
from edge_runtime.formats.zero_order import NOT_FINITE
from edge_runtime.wire.messages import AssignmentKey
from edge_runtime.wire.work import Arm, ProbeWork, SeedPoolWork, Work
from edge_runtime.zero_order.pool import device_number, seeds_of_step, step_weights, tensor_indices

NAME: Final = "seed_pool.magnitudes"
"""In the memory of the model: medians of the magnitudes of the devices' scalars in the last rounds, float64."""

LARGEST_RATE: Final = 1e-3
"""Learning rate that all weights are tuned with at most: a step moves each of them by that times a scalar."""


class SeedPoolTuning(ScalarTuning[SeedPoolWork]):
    """All weights, tuned by differences of losses along the noise of a pool of seeds."""

    work_type = "seed_pool"
    asks: ClassVar[str] = "forward passes over the whole model with all weights perturbed; a scalar for each pair"

    def check_initial(self, model: Aggregated) -> None:
        """Refuse an adapter with LoRA factors, because this method has none; see :meth:`Method.check_initial`."""
        if any(model.adapter[names.lora_b(target.module)].any() for target in self._manifest.targets):
            msg = (
                "the adapter to start from has LoRA factors that change the model, and --tune all has none: leave "
                "--adapter out, or make a checkpoint of that adapter and give it as --model"
            )
            raise ConfigError(msg)

    # ---- assignments -------------------------------------------------------------------------------------------------

    def ask(self, key: AssignmentKey, arm: Arm, *, at_once: bool, model: Aggregated) -> AssignedWork:
        """Ask for the probe's sums first if they give the initial head, then for steps; see :meth:`Method.ask`."""
        if model.pool is None and self._probe is not None:
            return self._probe.ask(key, arm, at_once=at_once, model=model)
        training, settings = self._context.training, self._context.tables.zero_order
        work = SeedPoolWork(
            arm=arm,
            pool=self._pool(model),
            learning_rate=self._context.learning_rate_at(key.round_number),
            num_perturbations=settings.num_outer,
            num_local_steps=training.num_local_steps,
            epsilon=settings.epsilon,
            largest_scalar=largest_scalar(list(_magnitudes(model))),
            batch_size=training.batch_size,
            max_length=training.max_length,
        )
        return AssignedWork.under_one_plan(work, arm, num_steps=work.num_local_steps)

    def _pool(self, model: Aggregated) -> SeedPool:
        settings = self._context.tables.zero_order
        nowhere = bytes(4 * settings.num_seeds)
        return model.pool or SeedPool(seed=self._context.seed, noise=settings.noise, coefficients=nowhere)

    def start_kind(self, work: Work) -> Hashable:
        """All devices start from the same; see :meth:`Method.start_kind`."""
        return work.__struct_config__.tag

    def start(self, model: Aggregated, work: Work) -> Payload:
        """The dense tensors before the first step; see :meth:`Method.start`."""
        del work
        return Payload(adapter={dense.name: model.adapter[dense.name] for dense in self._manifest.dense})

    # ---- replies -----------------------------------------------------------------------------------------------------

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """The mean of the devices' models, by their examples; see :meth:`Method.combine`."""
        if all(isinstance(reply.work, ProbeWork) for reply in replies):
            combined = self._probe_of(replies[0].work).combine(round_number, before, importance, replies, rng)
            return dataclasses.replace(combined, model=dataclasses.replace(combined.model, pool=self._pool(before)))
        asked = self._same_work(replies)
        ordered, values, magnitude = self._values(replies, asked)
        num_all = sum(reply.num_examples for reply in ordered)
        total = coefficients_of(asked.pool).astype(np.float64)
        for reply, scalars in zip(ordered, values.astype(np.float32), strict=True):
            share, device = reply.num_examples / num_all, device_number(reply.device_id)
            for step, weights in enumerate(step_weights(scalars, asked.learning_rate), start=1):
                pool = asked.pool
                drawn = seeds_of_step(pool.seed, device, round_number, step, pool.num_seeds, len(weights))
                np.add.at(total, drawn, share * weights.astype(np.float64))
        coefficients = total.astype("<f4")
        if not (np.abs(coefficients) <= MAX_FACTOR).all():  # NaN neither
            msg = "a pool of seeds has a coefficient beyond every bound: training diverged"
            raise AggregationError(msg)
        pool = msgspec.structs.replace(asked.pool, coefficients=coefficients.tobytes())
        magnitudes = np.append(_magnitudes(before), magnitude)[-MEDIAN_ROUNDS:]
        memory = {**before.memory, NAME: magnitudes.astype("<f8").view(np.uint8)}
        return Combined(
            model=dataclasses.replace(before, pool=pool, memory=memory),
            importance=importance,
            not_finite={reply.device_id: int(reply.tensors[NOT_FINITE][0]) for reply in replies},
        )

    def _asked(self, work: Work) -> SeedPoolWork:
        if not isinstance(work, SeedPoolWork):
            msg = f"assignment asks for {type(work).__name__}, this run tunes all weights: start a new run"
            raise MessageError(msg)
        return work


def check_whole(settings: Mapping[str, object], manifest: Manifest | None) -> None:
    """Refuse settings that tuning of all weights has not, and weights that cannot be tuned.

    Raises:
        ConfigError: begins with the option.
    """
    if settings["zo_cut"] != 0 or settings["zo_inner"] != 1:
        msg = "--tune all perturbs all weights together, without a lower part: give --method fedkseed, mezo or decomfl"
        raise ConfigError(msg)
    for name, unused in (
        ("zo_normalise", False),
        ("zo_precondition", False),
        ("zo_move_cut", False),
        ("zo_combine", "mean"),
    ):
        if settings[name] != unused:
            msg = f"{option_name(name)} needs shared perturbations, and --tune all has none: leave it out"
            raise ConfigError(msg)
    if float(str(settings["learning_rate"])) > LARGEST_RATE:
        msg = (
            f"--learning-rate is {settings['learning_rate']}, beyond {LARGEST_RATE:g}: with --tune all a step moves "
            "every weight; give 1e-6 or so"
        )
        raise ConfigError(msg)
    if manifest is not None:
        try:
            tensor_indices(manifest)
        except TensorError as error:
            msg = f"--tune is all, but {error}"
            raise ConfigError(msg) from error


def _magnitudes(model: Aggregated) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    octets = model.memory.get(NAME)
    return np.zeros(0) if octets is None else np.frombuffer(octets.tobytes(), "<f8").astype(np.float64)
