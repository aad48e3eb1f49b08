"""Memory: what the process has used."""

from __future__ import annotations

from pathlib import Path


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Largest resident set of this process so far, bytes: ``VmHWM`` of Linux (``man 5 proc``)."""
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
