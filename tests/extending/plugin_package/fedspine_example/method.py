"""``equal_voices``: a method is a name for settings; here those of the scheduler and the rule beside it."""

from __future__ import annotations

from broker_server.methods.presets import Preset, Settings, Shared


def _settings(shared: Shared) -> Settings:
    return {
        "scheduler": "largest_first",
        "aggregation": "equal_voices",
        "importance": "lora",
        "ramp_rounds": shared.rounds_share(0.2),
    }


EQUAL_VOICES = Preset(
    label="Equal voices",
    about="each device plays the largest arm that fits it, and its factors count as much as any other's",
    settings=_settings,
)
