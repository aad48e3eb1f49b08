"""Methods by the kind of their work: the tag of a member of the union of work on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker_server.methods.lora.method import Lora
from broker_server.methods.method import Method
from broker_server.methods.mixed.method import Mixed
from broker_server.methods.probe.method import SoftmaxProbe, StatisticsProbe
from broker_server.methods.split.method import Split
from broker_server.methods.zero_order.method import ZeroOrder

WORKS: Final[Mapping[str, type[Method]]] = {
    "lora": Lora,
    "probe": StatisticsProbe,
    "probe_softmax": SoftmaxProbe,
    "zero_order": ZeroOrder,
    "mixed": Mixed,
    "split": Split,
}
