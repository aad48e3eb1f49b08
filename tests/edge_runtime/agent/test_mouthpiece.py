from __future__ import annotations

import random

import pytest

from edge_runtime.agent.mouthpiece import Mouthpiece
from edge_runtime.link.mqtt import BrokerAddress, TlsFiles


@pytest.mark.parametrize("mark", [".", "_", "-"])
def test_devices_of_different_fleets_never_share_a_client_id(mark: str) -> None:
    """A broker ends a connection when another one comes with the same client id."""
    address = BrokerAddress.parse("mqtt://127.0.0.1")
    names = [("lab", f"north{mark}board"), (f"lab{mark}north", "board")]
    mouths = [Mouthpiece(address, fleet, device, TlsFiles(), random.Random(0)) for fleet, device in names]
    assert len({mouth.link._settings.client_id for mouth in mouths}) == 2
