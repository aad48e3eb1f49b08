"""Methods by the kind of work that they ask of devices: the tag of a member of the union of work on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker_server.methods.lora.method import Lora
from broker_server.methods.method import Method, MethodContext

WORKS: Final[Mapping[str, type[Method]]] = {"lora": Lora}


def make_method(work: str, context: MethodContext) -> Method:
    """The method of a kind of work."""
    return WORKS[work](context)
