"""Methods by the kind of work that they ask of devices: the tag of a member of the union of work on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker_server.errors import ConfigError
from broker_server.methods.lora.method import Lora
from broker_server.methods.method import Method, MethodContext
from broker_server.methods.probe.method import SoftmaxProbe, StatisticsProbe
from broker_server.methods.zero_order.method import ZeroOrder

WORKS: Final[Mapping[str, type[Method]]] = {
    "lora": Lora,
    "probe": StatisticsProbe,
    "probe_softmax": SoftmaxProbe,
    "zero_order": ZeroOrder,
}


def make_method(work: str | type[Method], context: MethodContext) -> Method:
    """The method of a kind of work, or of a class that a package outside brings.

    Raises:
        ConfigError: there is none, or it cannot train this model.
    """
    if isinstance(work, str) and work not in WORKS:
        msg = f"kind of work {work!r} is not known, expected one of {', '.join(WORKS)}: check the package of the method"
        raise ConfigError(msg)
    return (WORKS[work] if isinstance(work, str) else work)(context)
