"""Versions of packages that are installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Version of each package, in the given order; packages that are not installed are left out.

    >>> installed(["no-such-package"])
    {}
    """
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
