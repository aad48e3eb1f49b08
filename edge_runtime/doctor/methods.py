"""Checks of methods that other packages add to the device; their code is imported in a separate process."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from typing import Final

from edge_runtime.doctor.findings import Finding, ok, warning
from edge_runtime.doctor.setup import Setup
from edge_runtime.system.interpreter import code_command

LONGEST_S: Final = 120.0

_PROGRAM: Final = "import sys; from edge_runtime.doctor.methods import import_all; import_all(sys.argv[1])"


def methods(setup: Setup) -> Finding:
    """Can every method of an installed package be used, and every class that the owner gave?"""
    from edge_runtime.agent.methods.installed import InstalledMethods  # noqa: PLC0415 - a missing package is a finding

    installed = InstalledMethods.of(setup.device_methods)
    if not installed.names():
        return ok("methods", "none of other packages")
    known = ", ".join(f"{name} ({installed.source_of(name)})" for name in installed.names())
    if fault := _fault(setup.device_methods or ""):
        return warning("methods", fault, "until then this board refuses runs of such a method")
    return ok("methods", known)


def _fault(classes: str) -> str:
    """Return the faults of these methods; empty = none."""
    command = [*code_command(_PROGRAM), classes]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        return " ".join(f"could not be imported: {why}".split())
    if done.returncode < 0:
        return f"Python crashes with {signal.Signals(-done.returncode).name} where they are imported"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["importing them gave no reason"])[-1]
    return "; ".join(done.stdout.splitlines())


def import_all(classes: str) -> None:
    """Import all methods, and print a line on each that cannot be used; for the separate process.

    Args:
        classes: value of the option, see :meth:`InstalledMethods.of`.
    """
    from edge_runtime.agent.errors import DeviceMethodError  # noqa: PLC0415 - see above
    from edge_runtime.agent.methods.installed import InstalledMethods  # noqa: PLC0415

    installed = InstalledMethods.of(classes)
    for name in installed.names():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                installed.find(name)
        except DeviceMethodError as error:
            sys.stdout.write(f"{' '.join(str(error).split())}\n")
