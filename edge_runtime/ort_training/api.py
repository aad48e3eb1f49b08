"""The door to onnxruntime-training: it imports modules of the package without the package's ``__init__``.

``import onnxruntime.training`` imports torch, for ORTModule. The modules used here (``api`` on the device,
``artifacts`` where models are made) do not need torch. So the parent package is registered without running its
``__init__``, and the modules are imported from it.
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
"""The supported and tested release; it is the last one."""

_PACKAGE: Final = "onnxruntime.training"
_ERRORS_ONLY: Final = 3


def load(part: Literal["api", "artifacts", "onnxblock"]) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Import a module of onnxruntime-training, without torch.

    Raises:
        OrtMissingError: the package is not installed, has another version, or has no wheels for this machine.
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
