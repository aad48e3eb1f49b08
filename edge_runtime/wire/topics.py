"""MQTT topics.

    fedspine/v1/<fleet>/up/<device_id>/<kind>      device -> coordinator
    fedspine/v1/<fleet>/down/<device_id>/<kind>    coordinator -> device
    fedspine/v1/<fleet>/all/<kind>                 coordinator -> every device
    fedspine/v1/<fleet>/coordinator/claim          coordinator -> coordinator

A broker's ACL needs two lines a device: it publishes under its ``up``, it reads its ``down`` and ``all``.
``<kind>`` is the tag of the message (:mod:`edge_runtime.wire.messages`), so that one can subscribe to one kind.
"""

from __future__ import annotations

from typing import Final

from edge_runtime.bounds.fields import NAME, NAME_RULE
from edge_runtime.errors import MessageError

ROOT: Final = "fedspine/v1"


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it may be a fleet name or a device id.

    Raises:
        MessageError: the name is not allowed.
    """
    if NAME.fullmatch(name) is None:
        msg = f"{what} {name[:100]!r} is not allowed: use {NAME_RULE}"
        raise MessageError(msg)
    return name


def up(fleet: str, device_id: str, kind: str) -> str:
    """Topic of a message from a device."""
    return f"{ROOT}/{check_name(fleet, 'fleet')}/up/{check_name(device_id, 'device id')}/{kind}"


def down(fleet: str, device_id: str, kind: str) -> str:
    """Topic of a message to one device."""
    return f"{ROOT}/{check_name(fleet, 'fleet')}/down/{check_name(device_id, 'device id')}/{kind}"


def to_all(fleet: str, kind: str) -> str:
    """Topic of a message to every device."""
    return f"{ROOT}/{check_name(fleet, 'fleet')}/all/{kind}"


def of_coordinators(fleet: str) -> str:
    """Topic on which a coordinator claims a fleet; devices neither read nor write it."""
    return f"{ROOT}/{check_name(fleet, 'fleet')}/coordinator/claim"


def coordinator_subscriptions(fleet: str) -> list[str]:
    """Topic filters of the coordinator."""
    return [f"{ROOT}/{check_name(fleet, 'fleet')}/up/+/+"]


def device_subscriptions(fleet: str, device_id: str) -> list[str]:
    """Topic filters of a device."""
    return [down(fleet, device_id, "+"), to_all(fleet, "+")]


def sender(topic: str) -> str:
    """Device id of an ``up`` topic. Trust it, not the payload: the broker's ACL protects only the topic.

    Raises:
        MessageError: the topic is not an ``up`` topic.

    >>> sender("fedspine/v1/lab/up/board-7/update")
    'board-7'
    """
    parts = topic.split("/")
    if len(parts) != 6 or "/".join(parts[:2]) != ROOT or parts[3] != "up":
        msg = f"topic {topic!r} is not {ROOT}/<fleet>/up/<device_id>/<kind>"
        raise MessageError(msg)
    return check_name(parts[4], "device id")
