"""Peak memory of this process; all memory figures of FedSpine use this definition."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Largest resident set of this process so far, bytes: ``VmHWM`` of Linux (``man 5 proc``); 0 elsewhere."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
