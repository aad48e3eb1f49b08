"""A trial of onnxruntime: one matrix product in a separate process, since some builds crash on some processors."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from edge_runtime.doctor.findings import Finding, error, ok
from edge_runtime.errors import ExitCode, FedSpineError
from edge_runtime.system.interpreter import code_command

PRODUCT: Final = (
    b'\x08\x08:[\n\x11\n\x01a\n\x01b\x12\x01c"\x06MatMul\x12\x01gZ\x15\n\x01a\x12\x10\n\x0e\x08\x01\x12\n'
    b"\n\x03\x12\x01n\n\x03\x12\x01nZ\x15\n\x01b\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01n\n\x03\x12\x01n"
    b"b\x15\n\x01c\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01n\n\x03\x12\x01nB\x04\n\x00\x10\x11"
)
"""A graph of one matrix product, c = a b, float32 ``[n, n]`` (ONNX, opset 17); a test reads it with onnx."""

SIZE: Final = 64
LONGEST_S: Final = 120.0

_PROGRAM: Final = "import sys; from edge_runtime.doctor.trial import multiply; sys.exit(multiply())"


def session() -> Finding:
    """Does onnxruntime compute?"""
    try:
        done = subprocess.run(code_command(_PROGRAM), capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        detail = " ".join(f"could not be tried: {why}".split())
        return error("session", detail, "check whether the machine is overloaded", ExitCode.UNEXPECTED)
    if done.returncode == ExitCode.OK:
        return ok("session", f"a product of {SIZE} x {SIZE} matrices is right")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        step = "install another version of onnxruntime: this build does not run on this processor"
        return error("session", f"onnxruntime crashes with {name}", step, ExitCode.UNEXPECTED)
    detail = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    code = ExitCode.MISSING_DEPENDENCY if done.returncode == ExitCode.MISSING_DEPENDENCY else ExitCode.UNEXPECTED
    return error("session", detail, "pip install --force-reinstall onnxruntime numpy", code)


def multiply() -> int:
    """Compare a product with numpy's, in the separate process; return an exit code, and print a fault on stderr."""
    try:
        import numpy as np  # noqa: PLC0415 - see the package's docstring

        from edge_runtime.engine.session import Binding, Graph  # noqa: PLC0415

        rng = np.random.default_rng(0)
        left, right = (rng.standard_normal((SIZE, SIZE)).astype(np.float32) for _ in range(2))
        out = np.zeros((SIZE, SIZE), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "product.onnx")
            path.write_bytes(PRODUCT)
            binding = Binding(Graph(path, num_threads=1))
            binding.bind("a", left)
            binding.bind("b", right)
            binding.bind_output("c", out)
            binding.run()
    except (ImportError, FedSpineError, OSError) as why:
        sys.stderr.write(f"{' '.join(str(why).split())}\n")
        return int(ExitCode.MISSING_DEPENDENCY if isinstance(why, ImportError) else ExitCode.UNEXPECTED)
    if not np.allclose(out, left @ right, atol=1e-3):
        sys.stderr.write("a matrix product differs from numpy's\n")
        return int(ExitCode.UNEXPECTED)
    return int(ExitCode.OK)
