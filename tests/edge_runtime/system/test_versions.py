from __future__ import annotations

import importlib.metadata

from edge_runtime.system.versions import installed


def test_versions_are_those_of_installed_packages_in_the_order_given() -> None:
    found = installed(["numpy", "no-such-package", "msgspec"])
    assert list(found) == ["numpy", "msgspec"]
    assert found["numpy"] == importlib.metadata.version("numpy")
