"""The capabilities of this machine, measured once and kept in the state directory."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import psutil

from edge_runtime.system.files import write_atomically
from edge_runtime.system.versions import installed
from edge_runtime.wire.measures import Capabilities

logger = logging.getLogger(__name__)

DEFAULT_MEMORY_RATIO: Final = 0.8
"""Share of the available memory that training may use if the owner sets no limit."""

MATRIX_SIZE: Final = 512
COPY_BYTES: Final = 32 * 1024 * 1024
MEASURE_S: Final = 0.2
"""Time that each measurement takes, seconds."""

PACKAGES: Final = (
    "fedspine",
    "onnxruntime",
    "onnxruntime-training",
    "numpy",
    "paho-mqtt",
    "msgspec",
    "safetensors",
    "tokenizers",
)

_CGROUP_FILES: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that rates were measured on; rates are measured again when a field changes."""

    architecture: str
    operating_system: str
    num_cores: int
    num_threads: int
    versions: dict[str, str]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements that are kept in the state directory."""

    machine: Machine
    matmul_gflops: float
    memory_copy_gb_s: float


def find_capabilities(cache: Path, num_threads: int, memory_limit_bytes: int) -> Capabilities:
    """Describe this machine; the rates come from ``cache`` if they were measured on it.

    Args:
        cache: JSON file, written when it is absent, unreadable, or of another machine.
        num_threads: threads that training uses.
        memory_limit_bytes: memory that training may use, bytes.
    """
    machine = Machine(
        architecture=platform.machine(),
        operating_system=f"{platform.system()} {platform.release()}",
        num_cores=usable_cores(),
        num_threads=num_threads,
        versions={"python": platform.python_version(), **installed(PACKAGES)},
    )
    rates = _cached(cache, machine)
    if rates is None:
        rates = Rates(machine=machine, matmul_gflops=measure_matmul(), memory_copy_gb_s=measure_copy())
        write_atomically(cache, msgspec.json.encode(rates))
    return Capabilities(
        architecture=machine.architecture,
        operating_system=machine.operating_system,
        num_cores=machine.num_cores,
        num_threads=num_threads,
        memory_bytes=total_memory(),
        memory_limit_bytes=memory_limit_bytes,
        versions=machine.versions,
        matmul_gflops=rates.matmul_gflops,
        memory_copy_gb_s=rates.memory_copy_gb_s,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Memory of the machine, or of the container if the container has less, bytes."""
    return min([int(psutil.virtual_memory().total), *_container_limits()])


def default_memory_limit() -> int:
    """Return the default memory limit: a share of the memory that is available now, bytes."""
    return int(DEFAULT_MEMORY_RATIO * min([int(psutil.virtual_memory().available), *_container_limits()]))


def measure_matmul(clock: Callable[[], float] = time.perf_counter) -> float:
    """Float32 matrix-product rate of numpy's BLAS, 1e9 operations a second: the fastest of many products."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((MATRIX_SIZE, MATRIX_SIZE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(left)
    return 2e-9 * MATRIX_SIZE**3 / _fastest(lambda: np.matmul(left, right, out=out), clock)


def measure_copy(clock: Callable[[], float] = time.perf_counter) -> float:
    """Memory copy rate, 1e9 bytes a second: the fastest of many copies of a block larger than most caches."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return 1e-9 * COPY_BYTES / _fastest(lambda: np.copyto(target, source), clock)


def _fastest(operation: Callable[[], object], clock: Callable[[], float]) -> float:
    operation()
    best = float("inf")
    end = clock() + MEASURE_S
    while True:
        started = clock()
        operation()
        finished = clock()
        best = min(best, max(finished - started, 1e-9))
        if finished >= end:
            return best


def _cached(cache: Path, machine: Machine) -> Rates | None:
    try:
        rates = msgspec.json.decode(cache.read_bytes(), type=Rates)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        logger.warning("%s is not readable (%s); measuring again", cache, error)
        return None
    return rates if rates.machine == machine else None


def _container_limits() -> list[int]:
    limits = []
    for name in _CGROUP_FILES:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return limits
