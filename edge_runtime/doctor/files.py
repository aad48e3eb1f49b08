"""Checks of the files that the owner of the board gives: the state folder and the examples."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Final

from edge_runtime.doctor.findings import Finding, error, ok, refused, skipped, warning
from edge_runtime.doctor.setup import Setup
from edge_runtime.errors import ExitCode, FedSpineError

LEAST_DISK_BYTES: Final = 50_000_000
AMPLE_DISK_BYTES: Final = 500_000_000
"""Ample free space: enough for two artifacts of a small model, updates and a checkpoint."""


def state(setup: Setup) -> Finding:
    """Is there space for the state, and do writing, flushing, renaming and locking work there?

    The check uses a new folder and removes it; a running device is not disturbed.
    """
    if setup.state is None:
        return skipped("state", "--state")
    place = next(folder for folder in (setup.state.absolute(), *setup.state.absolute().parents) if folder.is_dir())
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
            is_locked = _is_locked_by_one(Path(folder))
    except OSError as why:
        step = "choose another folder with --state, or let this user write there"
        return error("state", f"{place} cannot be written ({why.strerror})", step, ExitCode.USAGE)
    except FedSpineError as why:
        return refused("state", why)
    if not is_locked:
        step = "choose a folder on a local disk with --state"
        return error("state", f"locks do nothing in {place}: two processes could use it at once", step, ExitCode.USAGE)
    return _space(free, place)


def _is_locked_by_one(folder: Path) -> bool:
    """Return whether a locked state directory refuses a second process; also write, flush and rename files in it."""
    from edge_runtime.agent.errors import StateInUseError  # noqa: PLC0415 - see the package's docstring
    from edge_runtime.agent.identity import StateDirectory  # noqa: PLC0415

    with StateDirectory(folder):
        try:
            StateDirectory(folder).close()
        except StateInUseError:
            return True
    return False


def _space(free: int, place: Path) -> Finding:
    shown = f"{free / 1e6:.0f} MB are free in {place}"
    if free < LEAST_DISK_BYTES:
        return error("state", shown, "free some space, or choose another disk with --state", ExitCode.DISK_FULL)
    if free < AMPLE_DISK_BYTES:
        return warning("state", shown, "artifacts of larger models need more: free some space")
    return ok("state", f"{shown}; writing, renaming and locking work")


def data(setup: Setup) -> Finding:
    """Can the examples be read? Raw text needs the tokenizer's package."""
    from edge_runtime.agent.precheck import look_at_examples  # noqa: PLC0415 - see the package's docstring

    if setup.data is None:
        return skipped("data", "--data")
    try:
        found = look_at_examples(setup.data)
    except FedSpineError as why:
        return refused("data", why)
    shown = f"{found.num_examples} example{'' if found.num_examples == 1 else 's'}, {found.num_texts} of them raw text"
    if found.num_texts and importlib.util.find_spec("tokenizers") is None:
        step = "pip install tokenizers, or tokenise elsewhere ('input_ids')"
        return error("data", f"{shown}, and tokenizers is not installed", step, ExitCode.MISSING_DEPENDENCY)
    if found.warnings:
        return warning(
            "data", f"{shown}; {'; '.join(found.warnings)}", "correct these lines, or leave them as they are"
        )
    return ok("data", shown)
