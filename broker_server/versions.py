"""What this machine runs: versions, system, cores."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Final

PACKAGES: Final = ("fedspine", "onnxruntime", "numpy", "torch", "transformers", "onnx", "paho-mqtt")
"""Packages whose versions are reported, where they are installed."""


def environment() -> dict[str, str]:
    """Versions, processor and cores of this machine."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["cores"] = str(len(os.sched_getaffinity(0)))
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
