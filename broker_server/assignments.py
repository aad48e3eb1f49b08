"""From an arm to an assignment: plan, restricted adapter, hyper-parameters; and what an update to it must look like."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from broker_server.adapters import Adapter
from broker_server.config import CoordinatorConfig
from broker_server.round_types import SendAssignment
from edge_runtime.wire import chunks
from edge_runtime.wire.adapter import AdapterLayout, restrict
from edge_runtime.wire.errors import MessageError
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Arm, Assignment, BlobRef, HyperParameters, Update
from edge_runtime.wire.plan import Plan
from edge_runtime.wire.ranking import Importance, plan_at
from edge_runtime.wire.tensors import WireDtype, decode_tensors, encode_tensors

HEADER_BYTES_PER_TENSOR = 512
"""Allowance for a tensor's entry in a safetensors header; names are module paths."""


class Assigner:
    """Plans and blobs of one run; a plan is made once for each ratio, a blob once for each arm of a round."""

    def __init__(self, config: CoordinatorConfig, manifest: Manifest, importance: Importance) -> None:
        self._config = config
        self._manifest = manifest
        self._importance = importance
        self._plans: dict[float, Plan] = {}
        self._sparsities: dict[float, float] = {}
        self._blobs: dict[Arm, tuple[BlobRef, bytes]] = {}

    def plan(self, arm: Arm) -> Plan:
        """The plan of an arm."""
        if arm.pruning_ratio not in self._plans:
            self._plans[arm.pruning_ratio] = plan_at(self._manifest, self._importance, arm.pruning_ratio)
        return self._plans[arm.pruning_ratio]

    def sparsity(self, arm: Arm) -> float:
        """Measured fraction of the prunable weights that the arm's plan removes, [0, 1)."""
        if arm.pruning_ratio not in self._sparsities:
            self._sparsities[arm.pruning_ratio] = self.plan(arm).sparsity(self._manifest)
        return self._sparsities[arm.pruning_ratio]

    def blob(self, arm: Arm, adapter: Mapping[str, npt.NDArray[np.float32]]) -> tuple[BlobRef, bytes]:
        """The part of this round's global adapter that a device with this arm starts from."""
        if arm not in self._blobs:
            dtype: WireDtype = "float16" if self._config.wire_dtype == "float16" else "float32"
            data = encode_tensors(restrict(self._manifest, adapter, self.plan(arm), arm.rank), dtype)
            self._blobs[arm] = chunks.describe(data), data
        return self._blobs[arm]

    def clear(self) -> tuple[str, ...]:
        """Forget the blobs of a round that is over; returns their digests."""
        digests = tuple(ref.digest for ref, _ in self._blobs.values())
        self._blobs.clear()
        return digests

    def message(self, command: SendAssignment, ref: BlobRef) -> Assignment:
        """What is sent to the device."""
        key = command.key
        return Assignment(
            run_id=self._config.run_id,
            device_id=key.device_id,
            round_number=key.round_number,
            attempt=key.attempt,
            arm=command.arm,
            plan=self.plan(command.arm),
            adapter=ref,
            deadline_s=command.deadline_s,
            hyper_parameters=self._hyper_parameters(key.round_number, key.device_id),
        )

    def check_size(self, update: Update, arm: Arm) -> None:
        """Refuse an update that is larger than any adapter of the arm, before anything is pulled.

        Raises:
            MessageError: it is.
        """
        layout = AdapterLayout.of(self._manifest, self.plan(arm), arm.rank)
        most = 4 * layout.num_elements + HEADER_BYTES_PER_TENSOR * (1 + len(layout.shapes))
        if update.adapter.size_bytes > most:
            msg = f"update is {update.adapter.size_bytes} bytes, at most {most} are expected"
            raise MessageError(msg, device_id=update.device_id, round_number=update.round_number)

    def read_update(self, blob: bytes, arm: Arm) -> Adapter:
        """The tensors of an update.

        Raises:
            TensorError: malformed, or other names, shapes or values than the arm's.
        """
        tensors = decode_tensors(blob)
        AdapterLayout.of(self._manifest, self.plan(arm), arm.rank).check(tensors)
        return tensors

    def _hyper_parameters(self, round_number: int, device_id: str) -> HyperParameters:
        training = self._config.training
        entropy = (self._config.seed, round_number, zlib.crc32(device_id.encode()))
        return HyperParameters(
            learning_rate=training.learning_rate_at(round_number),
            weight_decay=training.weight_decay,
            lora_scaling=training.lora_scaling,
            max_grad_norm=training.max_grad_norm,
            num_warmup_steps=training.num_warmup_steps,
            num_local_steps=training.num_local_steps,
            batch_size=training.batch_size,
            num_accumulation_steps=training.num_accumulation_steps,
            max_length=training.max_length,
            seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
        )
