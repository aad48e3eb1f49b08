"""Versions, system and cores of this machine."""

from __future__ import annotations

import os
import platform
from typing import Final

from edge_runtime.system.versions import installed

PACKAGES: Final = ("fedspine", "onnxruntime", "numpy", "torch", "transformers", "onnx", "paho-mqtt")
"""Packages whose versions are reported, where they are installed."""


def environment() -> dict[str, str]:
    """Versions, processor and cores of this machine."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    return found | installed(PACKAGES)
