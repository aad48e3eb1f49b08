"""Aggregation of adapters of different ranks and plans.

To add a rule here, write a file with a class and name it below; from a package outside: docs/extending.md.
"""

from __future__ import annotations

from typing import Final

from broker_server.errors import ConfigError
from broker_server.methods.aggregation.base import Aggregated, Aggregation, DeviceUpdate
from broker_server.methods.aggregation.bounds import check_bounds
from broker_server.methods.aggregation.fedex_lora import FedExLora
from broker_server.methods.aggregation.fedit import FedIt
from broker_server.methods.aggregation.fedspine import FedSpine
from broker_server.methods.aggregation.fedspine_holders import FedSpineHolders
from broker_server.methods.aggregation.ffa_lora import FfaLora
from broker_server.methods.aggregation.flexlora import FlexLora
from broker_server.methods.aggregation.flora import FLora
from broker_server.methods.aggregation.hetlora import HetLora
from broker_server.methods.aggregation.norms import change_norm
from broker_server.methods.aggregation.shares import with_ceiling
from edge_runtime.system.registry import Registry, subclass_of

__all__ = [
    "AGGREGATIONS",
    "Aggregated",
    "Aggregation",
    "DeviceUpdate",
    "change_norm",
    "check_bounds",
    "make_aggregation",
    "with_ceiling",
]

AGGREGATIONS: dict[str, type[Aggregation]] = {
    rule.name: rule for rule in (FedIt, FfaLora, HetLora, FlexLora, FLora, FedExLora, FedSpine, FedSpineHolders)
}
"""FedSpine's own rules by name."""

_REGISTRY: Final = Registry(
    group="fedspine.aggregations",
    kind="aggregation",
    own=AGGREGATIONS,
    fits=subclass_of(Aggregation),  # type: ignore[type-abstract]
    expected="a subclass of broker_server.methods.aggregation.Aggregation",
    error=ConfigError,
)


def make_aggregation(name: str) -> Aggregation:
    """The rule with a name: of FedSpine, of an installed package, or ``pkg.mod:Class``.

    Raises:
        ConfigError: there is no such rule, or it cannot be imported.
    """
    return _REGISTRY.find_or_import(name)()
