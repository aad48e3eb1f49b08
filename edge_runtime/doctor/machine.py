"""Checks of the machine: processor, memory, clock, sensors and the nice level."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path
from typing import Final

from edge_runtime.board.errors import NoSensorError
from edge_runtime.board.sensors import Sensors
from edge_runtime.doctor.findings import Finding, error, ok, refused, warning
from edge_runtime.doctor.setup import Setup
from edge_runtime.errors import ExitCode

LEAST_MEMORY_BYTES: Final = 128 * 1024 * 1024
"""Least memory for training: interpreter, packages and graphs alone take about 90 MB."""

NOT_BEFORE: Final = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
"""Earliest possible date: this release is later. Boards without a battery begin in 1970 at every boot."""

_FAST: Final = {"x86_64": ("avx2", "fma"), "aarch64": ("asimd",)}
"""Extensions of the processor without which onnxruntime uses its slowest matrix products."""

_TOLD: Final = ("avx2", "avx512f", "avx512_vnni", "amx_tile", "fma", "f16c", "asimd", "asimddp", "i8mm", "bf16", "sve")


def processor(cpu_file: Path = Path("/proc/cpuinfo")) -> Finding:
    """Check the processor's architecture and extensions."""
    architecture, features = platform.machine(), _features(cpu_file)
    if architecture not in _FAST:
        step = "use 64-bit Linux on x86-64 or aarch64: there are wheels for those"
        return warning("processor", f"{architecture} is not tested", step)
    shown = f"{architecture}, {' '.join(name for name in _TOLD if name in features) or 'no known extension'}"
    if features and (missing := [name for name in _FAST[architecture] if name not in features]):
        return warning("processor", f"{shown}, without {' and '.join(missing)}", "expect several times slower steps")
    return ok("processor", shown)


def cores(setup: Setup) -> Finding:
    """Are there as many cores as threads?"""
    usable = len(os.sched_getaffinity(0))
    if setup.num_threads is not None and setup.num_threads > usable:
        return warning("cores", f"{usable} cores for --threads {setup.num_threads}", f"give --threads {usable} or less")
    return ok("cores", f"{usable}, of which training uses {setup.num_threads or usable}")


def memory(setup: Setup) -> Finding:
    """Is there as much memory as training may use?"""
    import psutil  # noqa: PLC0415 - see the package's docstring

    from edge_runtime.agent import capabilities  # noqa: PLC0415

    total, free = capabilities.total_memory(), int(psutil.virtual_memory().available)
    limit = setup.memory_limit_bytes or capabilities.default_memory_limit()
    shown = f"{_mb(free)} of {_mb(total)} are free, training may use {_mb(limit)}"
    if limit > total or limit < LEAST_MEMORY_BYTES:
        step = f"give --memory-limit between {_mb(LEAST_MEMORY_BYTES)} and {_mb(total)}"
        return error("memory", shown, step, ExitCode.INSUFFICIENT_MEMORY)
    if limit > free:
        return warning("memory", shown, f"free some, or give --memory-limit {_mb(int(0.8 * free)).replace(' ', '')}")
    return ok("memory", shown)


def swap() -> Finding:
    """Does the machine swap already?"""
    import psutil  # noqa: PLC0415 - see the package's docstring

    state = psutil.swap_memory()
    if state.total and state.percent > 50:
        step = "free memory: a step that swaps takes minutes, and wears an SD card out"
        return warning("swap", f"{_mb(state.used)} of {_mb(state.total)} are used", step)
    return ok("swap", f"{_mb(state.used)} of {_mb(state.total)} are used" if state.total else "none")


def nice(setup: Setup) -> Finding:
    """Can the process have the nice level that was asked for?"""
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if now > setup.nice:
        return warning(
            "nice",
            f"this shell is at {now}, above --nice {setup.nice}",
            "start it from a shell with a lower nice level",
        )
    return ok("nice", f"{now} now, {setup.nice} for the device")


def sensors(setup: Setup) -> Finding:
    """Is there a sensor for every threshold?"""
    reading = Sensors(setup.sensors).read()
    try:
        setup.pausing.check(reading)
    except NoSensorError as why:
        return refused("sensors", why)
    parts = []
    if reading.temperature_c is not None:
        parts.append(f"{reading.temperature_c:.0f} C")
    if reading.throttling is not None:
        parts.append(f"slowed down ({reading.throttling})" if reading.throttling else "not slowed down")
    if reading.battery is not None:
        parts.append(f"battery {reading.battery.percent:.0f} %{', in use' if reading.battery.is_discharging else ''}")
    if reading.throttling:
        step = "check cooling and power supply; --pause-on-throttling pauses training meanwhile"
        return warning("sensors", ", ".join(parts), step)
    return ok("sensors", ", ".join(parts) or "none, so nothing can pause the work")


def clock(setup: Setup) -> Finding:
    """Is the date plausible? A wrong date makes certificates invalid."""
    shown = dt.datetime.fromtimestamp(setup.now, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if setup.now >= NOT_BEFORE.timestamp():
        return ok("clock", shown)
    detail, step = f"{shown}, before this release was made", "set the clock: timedatectl set-ntp true"
    if setup.is_encrypted:
        return error("clock", f"{detail}: certificates are refused", step, ExitCode.BROKER_UNREACHABLE)
    return warning("clock", detail, step)


def _features(cpu_file: Path) -> set[str]:
    """Words of ``flags`` (x86) or ``Features`` (Arm); empty if the kernel lists none."""
    try:
        lines = cpu_file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return set(words.split())
    return set()


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
