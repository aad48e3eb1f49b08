"""Checks of Python and its packages: are they installed, in an allowed version?"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator
from typing import Final

from edge_runtime.doctor.findings import Finding, error, ok, warning
from edge_runtime.errors import ExitCode

OLDEST_PYTHON: Final = (3, 11)
OWN: Final = "fedspine"
RUNTIME: Final = "onnxruntime"

Version = tuple[int, ...]


def python() -> Finding:
    """Is Python new enough?"""
    if sys.version_info[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return error(
            "python",
            f"{platform.python_version()}, expected {wanted} or newer",
            f"make an environment with python{wanted} and install there",
            ExitCode.MISSING_DEPENDENCY,
        )
    return ok("python", f"{platform.python_version()} in {sys.prefix}")


def packages() -> Finding:
    """Are all required packages installed in an allowed version? onnxruntime has its own question."""
    try:
        allowed = dict(_requirements())
    except importlib.metadata.PackageNotFoundError:
        return warning("packages", "run from a checkout, so no versions are known", "install the wheel on boards")
    allowed.pop(RUNTIME, None)
    wrong = {name: fault for name in allowed if (fault := _fault(name, allowed[name]))}
    if wrong:
        step = "pip install " + " ".join(f"'{name}{allowed[name]}'" for name in wrong)
        return error("packages", "; ".join(wrong.values()), step, ExitCode.MISSING_DEPENDENCY)
    return ok("packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in allowed))


def onnxruntime() -> Finding:
    """Is there exactly one onnxruntime, in an allowed version?"""
    found = sorted(set(importlib.metadata.packages_distributions().get(RUNTIME, [])))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in found)
    if len(found) > 1:
        step = f"pip uninstall -y {' '.join(found)}, then pip install {RUNTIME}"
        return error(
            RUNTIME, f"{versions}: they write to one folder and break each other", step, ExitCode.MISSING_DEPENDENCY
        )
    if not found:
        return error(RUNTIME, "not installed", f"pip install {RUNTIME}", ExitCode.MISSING_DEPENDENCY)
    if found != [RUNTIME]:
        return warning(RUNTIME, f"{versions} in place of {RUNTIME}", f"install {RUNTIME}, the version that is tested")
    try:
        fault = _fault(RUNTIME, dict(_requirements()).get(RUNTIME, ""))
    except importlib.metadata.PackageNotFoundError:
        fault = ""
    if fault:
        return error(RUNTIME, fault, f"pip install --upgrade {RUNTIME}", ExitCode.MISSING_DEPENDENCY)
    return ok(RUNTIME, versions)


def _requirements() -> Iterator[tuple[str, str]]:
    """Packages of the base install, each with its allowed versions in pip's syntax."""
    for line in importlib.metadata.requires(OWN) or []:
        name, _, marker = line.partition(";")
        match = re.match(r"([A-Za-z0-9._-]+)\s*(.*)", name.strip())
        if match is not None and "extra ==" not in marker:
            yield match[1], match[2].strip("() ").replace(" ", "")


def _fault(name: str, allowed: str) -> str:
    """Return the fault of an installed package; empty = none."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return "" if is_allowed(version, allowed) else f"{name} is {version}, expected {allowed}"


def is_allowed(version: str, allowed: str) -> bool:
    """Return whether a version is within a range such as ``<2,>=1.23``; only release numbers count.

    >>> is_allowed("1.31.1", "<2,>=1.23"), is_allowed("1.9", ">=1.23"), is_allowed("2.0rc1", "<2,>=1.23")
    (True, False, False)
    """
    for part in filter(None, allowed.split(",")):
        sign, bound = re.match(r"([<>=!~]*)(.*)", part).groups()  # type: ignore[union-attr]
        mine, other = _release(version), _release(bound)
        length = max(len(mine), len(other))
        mine, other = (numbers + (0,) * (length - len(numbers)) for numbers in (mine, other))
        if not {">=": mine >= other, "<": mine < other, "==": mine == other, "<=": mine <= other}.get(sign, True):
            return False
    return True


def _release(version: str) -> Version:
    """The leading numbers of a version.

    >>> _release("1.31.1"), _release("2.0rc1")
    ((1, 31, 1), (2, 0))
    """
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()
