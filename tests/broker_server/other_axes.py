"""Methods whose arms are not LoRA's, by ``tests.broker_server.other_axes:NAME``: of an axis more, and of none."""

from __future__ import annotations

from typing import ClassVar, Final

from broker_server.methods.lora.method import Lora
from broker_server.methods.presets import Preset
from broker_server.methods.probe.method import SoftmaxProbe
from edge_runtime.wire.arms import Axes
from tests.three_axes import AXES


class ThreeAxes(Lora):
    """Arms have a batch size too."""

    axes: ClassVar[Axes] = AXES
    default_arms: ClassVar[str] = "0.0:8,0.5:4:batch_size=2"


class OneArm(SoftmaxProbe):
    """Every device does the same."""

    axes = Axes()
    default_arms = ""


THREE: Final = Preset(
    label="Three axes", about="a batch size for each arm", work=ThreeAxes, settings=lambda _: {"scheduler": "uniform"}
)
ONE: Final = Preset(label="One arm", about="no axis at all", work=OneArm, settings=lambda _: {"scheduler": "fixed"})
THREE_AXES: Final = f"{__name__}:THREE"
ONE_ARM: Final = f"{__name__}:ONE"
"""Value for ``--method``."""
