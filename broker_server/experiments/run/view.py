"""The state of a run for its display, put together from its events; pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from broker_server.serving.report.arms import arm_text
from broker_server.serving.report.quality import metric, metric_name, metric_text, plural
from broker_server.serving.storage import events
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.formats.manifest import Task
from edge_runtime.wire.arms import ArmError, Axes

MAX_SHOWN: Final = 8
"""Devices whose arms stand in a line."""

MAX_DETAIL: Final = 120
"""Characters of a device's reason in a line about its round."""


@dataclasses.dataclass(slots=True, kw_only=True)
class DeviceView:
    """One device, as last heard of."""

    state: str
    arm: str = ""
    """Arm that it plays in the current round; empty = none."""
    earlier: tuple[str, ...] = ()
    """Arms of the rounds before, the first one first."""
    step: int = 0
    num_steps: int = 0
    has_updated: bool = False
    """Whether its update of the current round was accepted."""


class RunView:
    """State of a run, fed by :meth:`apply`.

    Attributes:
        devices: by device id.
        rounds: finished rounds, in order.
        round_number: the round that is going on, or the last one.
        num_rounds: rounds of the whole run.
        classes: class of each emulated device; empty if nothing is emulated.
        axes: of the arms.
    """

    def __init__(self, task: Task, device_ids: tuple[str, ...], num_rounds: int, axes: Axes) -> None:
        self.task = task
        self.axes = axes
        self.devices = {device_id: DeviceView(state="starting") for device_id in device_ids}
        self.rounds: list[RoundRecord] = []
        self.round_number = 0
        self.num_rounds = num_rounds
        self.classes: Mapping[str, str] = {}

    def apply(self, event: events.AnyEvent) -> str | None:
        """Take in one event; returns a line worth printing, or None."""
        match event:
            case events.RoundStarted():
                return self._round_started(event)
            case events.DeviceSeen():
                return self._seen(event)
            case events.UpdateAccepted():
                self._device(event.device_id).has_updated = True
                return None
            case events.UpdatesDiscarded():
                return f"round {event.round_number}: its updates are not used: {event.detail}"
            case events.RoundFinished():
                self.rounds = [r for r in self.rounds if r.round_number < event.record.round_number] + [event.record]
                return self._round_line(event.record)
            case _:
                return None

    def go_on(self, earlier: Iterable[events.AnyEvent], rounds: Sequence[RoundRecord]) -> None:
        """Read the rounds before this session.

        Args:
            earlier: events of earlier sessions, as many as are kept.
            rounds: all that are finished.
        """
        for event in earlier:
            self.apply(event)
        self.rounds = list(rounds)

    def mark_ended(self, device_id: str) -> None:
        """A device's process ended."""
        self._device(device_id).state = "ended"

    @property
    def time_left_s(self) -> float | None:
        """Estimate: rounds left, each as long as the median of those that trained; None before the first."""
        seconds = [record.seconds for record in self.rounds if record.round_number > 0]
        if not seconds:
            return None
        return statistics.median(seconds) * max(0, self.num_rounds - self.rounds[-1].round_number)

    @property
    def is_between_rounds(self) -> bool:
        """Return whether every device of the round has answered, so that the server aggregates and evaluates."""
        playing = [device for device in self.devices.values() if device.arm and device.state != "ended"]
        return bool(playing) and all(device.has_updated for device in playing)

    def quality(self) -> tuple[str, str] | None:
        """Quality before training and now, for people; None before the first evaluation."""
        known = [record.evaluation for record in self.rounds if record.evaluation is not None]
        if not known:
            return None
        texts = [metric_text(self.task, metric(self.task, e.loss, e.accuracy)) for e in (known[0], known[-1])]
        return texts[0], texts[1]

    def _device(self, device_id: str) -> DeviceView:
        return self.devices.setdefault(device_id, DeviceView(state="new"))

    def _round_started(self, event: events.RoundStarted) -> str | None:
        for device in self.devices.values():
            if device.arm and event.round_number > self.round_number:
                device.earlier = (*device.earlier, device.arm)
            device.arm, device.step, device.has_updated = "", 0, False
        self.round_number = event.round_number
        arms = {device_id: self._short(arm) for device_id, arm in event.arms.items()}
        for device_id, arm in arms.items():
            self._device(device_id).arm = arm
        if not arms:
            return None
        if not self.axes:
            return f"round {event.round_number}/{self.num_rounds}, {plural(len(arms), 'device')}"
        shown = [f"{self.name(device_id)} {arm}" for device_id, arm in list(arms.items())[:MAX_SHOWN]]
        more = f", and {len(arms) - MAX_SHOWN} more" if len(arms) > MAX_SHOWN else ""
        return f"round {event.round_number}/{self.num_rounds}, arms: {', '.join(shown)}{more}"

    def name(self, device_id: str) -> str:
        """A device, and its emulated class."""
        name = self.classes.get(device_id)
        return device_id if name is None else f"{device_id} (emulated {name})"

    def _seen(self, event: events.DeviceSeen) -> str | None:
        device = self._device(event.device_id)
        is_over = bool(self.rounds) and self.rounds[-1].round_number >= self.num_rounds
        went_off = event.state == "offline" and device.state not in {"offline", "ended"} and not is_over
        device.state = event.state
        if event.num_steps:
            device.step, device.num_steps = event.step, event.num_steps
        return f"{event.device_id} went offline: {event.detail or 'no reason given'}" if went_off else None

    def _round_line(self, record: RoundRecord) -> str:
        quality = self._quality(record)
        if record.round_number == 0:
            return f"before training: {quality}"
        accepted = record.num_standing + sum(device.outcome == "accepted" for device in record.devices)
        updates = f"{plural(accepted, 'update')} used" if not record.discarded else f"none of {accepted} updates used"
        others = [
            f"{d.device_id} {d.outcome.replace('_', ' ')}{f': {d.detail[:MAX_DETAIL]}' if d.detail else ''}"
            for d in record.devices
            if d.outcome != "accepted"
        ]
        emulated = "" if record.emulated_s is None else f" ({record.emulated_s:.1f} s emulated)"
        return (
            f"round {record.round_number}/{self.num_rounds}: {quality}, {updates}, {record.seconds:.1f} s"
            f"{emulated}"
            f"{' (' + '; '.join(others) + ')' if others else ''}"
        )

    def _quality(self, record: RoundRecord) -> str:
        """Figure and number of examples, and whether it is worse than before training."""
        evaluation = record.evaluation
        if evaluation is None:
            return "not evaluated"
        value = metric(self.task, evaluation.loss, evaluation.accuracy)
        unit = "tokens" if self.task == "causal-lm" else "examples"
        text = f"{metric_name(self.task)} {metric_text(self.task, value)} on {evaluation.num_targets:,} {unit}"
        first = next((r.evaluation for r in self.rounds if r.evaluation is not None), None)
        if first is None or record.round_number == 0:
            return text
        before = metric(self.task, first.loss, first.accuracy)
        is_worse = value > before if self.task == "causal-lm" else value < before
        return f"{text} (worse than before training)" if is_worse else text

    def _short(self, arm: str) -> str:
        """An arm of an event for people."""
        try:
            return arm_text(self.axes.parse(arm)[0], self.axes)
        except ArmError:  # an event of an earlier release has another form
            return arm
