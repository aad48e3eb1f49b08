"""``fedspine_holders``: ``fedspine``, but a coordinate is divided by the weight of the devices that hold it.

So a unit that only some devices hold moves by their whole change, not by their share of it, and the model learns in
fewer rounds. The devices' data must pull alike in units that few of them hold. So classes must not be skewed, or must
be balanced in every device's batches (``class_balance``). Ours; docs/aggregation.md has the figures of both.
"""

from __future__ import annotations

from typing import ClassVar

from broker_server.methods.aggregation.fedspine import FedSpine


class FedSpineHolders(FedSpine):
    """See the module."""

    name: ClassVar[str] = "fedspine_holders"
    absent_keep: ClassVar[bool] = False
