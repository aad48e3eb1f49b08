"""The contenders: each is a command line that answers a request (:mod:`edge_runtime.benchmark.protocol`).

A peer is one function in :data:`PEERS`. It says how its process is started, and refuses where that cannot be.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker_server import export_door
from broker_server.benchmark.settings import BenchSettings
from broker_server.errors import ConfigError, MissingExtraError
from edge_runtime.engine.model import MODES
from edge_runtime.system.interpreter import module_command
from edge_runtime.wire.work import Arm

EXACT_BASES: Final = ("stored", "float32")
"""Types of frozen weights that lose nothing of the checkpoint's."""
UNPRUNED: Final = "-unpruned"
"""Suffix in the names of our modes at ratio 0, if the arm is pruned."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One column of the comparison."""

    name: str
    engine: str
    """Engine that its process is told to use."""
    arm: Arm
    base: str
    """Type of the frozen weights that it trains on."""
    command: tuple[str, ...]
    """Command line, up to the file with the request."""
    needs_ort_models: bool = False
    """Whether it runs ort-training models of its arm, which must be exported for it."""
    reference: str | None
    """Contender whose losses its own must be; None of ``fused`` itself, and where nothing else does the same work."""


def contenders_of(settings: BenchSettings) -> list[Contender]:
    """Both modes of this engine at the arm; at ratio 0 too, where the arm is pruned and a peer prunes nothing; peers.

    Raises:
        ConfigError: a peer is not known.
        MissingExtraError: a package of a peer is not installed.
    """
    unknown = [name for name in settings.against if name not in PEERS]
    if unknown:
        msg = f"--against names {unknown[0]!r}, which is not known; known: {', '.join(PEERS)}"
        raise ConfigError(msg)
    peers = [PEERS[name](settings) for name in dict.fromkeys(settings.against)]
    found = _ours(settings, settings.arm, "")
    if any(peer.arm != settings.arm for peer in peers):
        found += _ours(settings, unpruned(settings.arm), UNPRUNED)
    return found + peers


def unpruned(arm: Arm) -> Arm:
    """The arm of the same rank that removes nothing."""
    return Arm(pruning_ratio=0.0, rank=arm.rank)


def _ours(settings: BenchSettings, arm: Arm, suffix: str) -> list[Contender]:
    return [
        Contender(
            name=mode + suffix,
            engine=mode,
            arm=arm,
            base=settings.base,
            command=tuple(module_command("edge_runtime.benchmark.portable_contender")),
            reference=None if mode == MODES[0] else MODES[0] + suffix,
        )
        for mode in MODES
    ]


def _torch(settings: BenchSettings) -> Contender:
    """PyTorch and PEFT, eager: always the whole model, with the checkpoint's weights.

    Raises:
        MissingExtraError: a package of it is not installed.
    """
    for package in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            msg = f"--against torch needs the package {package!r}: install the server, pip install 'fedspine[server]'"
            raise MissingExtraError(msg)
    arm = unpruned(settings.arm)
    reference = MODES[0] if arm == settings.arm else MODES[0] + UNPRUNED
    return Contender(
        name="torch",
        engine="torch",
        arm=arm,
        base="float32",
        command=tuple(export_door.process("torch_contender")),
        reference=reference if settings.base in EXACT_BASES else None,
    )


def _ort_training(settings: BenchSettings) -> Contender:
    """onnxruntime-training, from its own environment, on models of the arm whose frozen weights are float32.

    Raises:
        MissingExtraError: there is no such environment.
    """
    if shutil.which(settings.ort_python) is None:
        msg = (
            f"--against ort-training needs the environment of onnxruntime-training, and {settings.ort_python} is not a "
            "program: run scripts/setup-ort-training, or name its interpreter with --ort-python"
        )
        raise MissingExtraError(msg)
    python = str(Path(shutil.which(settings.ort_python) or settings.ort_python).absolute())
    return Contender(
        name="ort-training",
        engine="ort-training",
        arm=settings.arm,
        base=settings.base,
        command=tuple(module_command("edge_runtime.benchmark.ort_contender", python=python)),
        needs_ort_models=True,
        reference=MODES[0],
    )


PEERS: Final[dict[str, Callable[[BenchSettings], Contender]]] = {"torch": _torch, "ort-training": _ort_training}
"""Peers by the name that ``--against`` takes."""
