"""``half_step``: a method with a class of its own, which moves the model half of the way that the rule says.

A learning rate of the server, as in FedOpt with plain gradient descent (Reddi et al. 2021, arXiv 2003.00295).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np

from broker_server.methods.aggregation import Aggregated
from broker_server.methods.lora.method import Lora
from broker_server.methods.method import Combined, Reply
from broker_server.methods.presets import Preset
from broker_server.methods.pruning.scores import Scores

SERVER_LEARNING_RATE: Final = 0.5


class HalfStep(Lora):
    """As ``lora``; devices do the same work."""

    asks: ClassVar[str] = Lora.asks

    def combine(
        self,
        round_number: int,
        before: Aggregated,
        importance: Scores,
        replies: Sequence[Reply],
        rng: np.random.Generator,
    ) -> Combined:
        """The model between the one before and the one that the rule makes."""
        made = super().combine(round_number, before, importance, replies, rng)
        adapter = {
            name: (old + SERVER_LEARNING_RATE * (made.model.adapter[name] - old)).astype(np.float32)
            for name, old in before.adapter.items()
        }
        return dataclasses.replace(made, model=dataclasses.replace(made.model, adapter=adapter))


HALF_STEP = Preset(
    label="Half step",
    about="the model moves half of the way that the devices' updates say",
    source="FedOpt, arXiv 2003.00295, like",
    work=HalfStep,
    settings=lambda _: {"scheduler": "random"},
)
