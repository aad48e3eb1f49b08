"""The one door to onnxruntime-training: its parts without its package.

``import onnxruntime.training`` imports torch, for ORTModule, which is of no use here. The parts that are (``api`` on
the device, ``artifacts`` where models are made) do not need it. So the parent is put in place without running its
``__init__``, and the parts are imported from it.
"""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from edge_runtime.ort_training.errors import OrtMissingError

VERSION: Final = "1.19.2"
"""The release that this was written for and is tested with; it is the last one."""

_PACKAGE: Final = "onnxruntime.training"
_ERRORS_ONLY: Final = 3


def load(part: Literal["api", "artifacts", "onnxblock"]) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """A part of onnxruntime-training, without torch.

    Raises:
        OrtMissingError: it is not installed, in another version, or this machine is none that it has wheels for.
    """
    machine = platform.machine()
    if machine != "x86_64":
        msg = (
            f"onnxruntime-training has wheels for 64-bit x86 alone, and this machine is {machine}: "
            "use --engine portable, which trains the same"
        )
        raise OrtMissingError(msg)
    import onnxruntime  # noqa: PLC0415 - after the machine is known

    folder = Path(str(onnxruntime.__file__)).parent / "training"
    if not (folder / "api").is_dir() or onnxruntime.__version__ != VERSION:
        msg = (
            f"this environment has onnxruntime {onnxruntime.__version__}, expected onnxruntime-training {VERSION}, "
            "which cannot share an environment with it: run scripts/setup-ort-training, and this from what it makes"
        )
        raise OrtMissingError(msg)
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[_PACKAGE] = package
        onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    return importlib.import_module(f"{_PACKAGE}.{part}")
