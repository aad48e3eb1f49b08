"""The state that a display gets, and what it shows."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from broker_server.experiments.run.display import LiveDisplay, PlainDisplay, make_display
from broker_server.experiments.run.progress import render
from broker_server.experiments.run.view import RunView
from broker_server.serving.storage.events import (
    DeviceSeen,
    EventLog,
    EventReader,
    RoundFinished,
    RoundStarted,
    UpdateAccepted,
)
from edge_runtime.wire.arms import LORA_AXES
from tests.broker_server.report_samples import round_records


def _seen(device_id: str, state: str, step: int = 0, detail: str = "") -> DeviceSeen:
    return DeviceSeen(at=0.0, device_id=device_id, state=state, round_number=1, step=step, num_steps=10, detail=detail)


def _view() -> RunView:
    return RunView("causal-lm", ("device-1", "device-2", "device-3"), 3, LORA_AXES)


def test_a_round_makes_one_line() -> None:
    view = _view()

    lines = [view.apply(RoundFinished(at=0.0, record=record)) for record in round_records()]

    assert lines == [
        "before training: perplexity 403.4 on 500 tokens",
        "round 1/3: perplexity 148.4 on 500 tokens, 3 updates used, 4.0 s",
        "round 2/3: perplexity 54.6 on 500 tokens, 2 updates used, 4.0 s (device-2 lost: went offline)",
        "round 3/3: perplexity 20.1 on 500 tokens, 3 updates used, 4.0 s",
    ]
    assert view.quality() == ("403.4", "20.1")


def test_updates_that_stand_from_earlier_rounds_count_as_used() -> None:
    *_, last = round_records()

    line = _view().apply(RoundFinished(at=0.0, record=msgspec.structs.replace(last, devices=(), num_standing=3)))

    assert line == "round 3/3: perplexity 20.1 on 500 tokens, 3 updates used, 4.0 s"


def test_a_run_that_goes_on_knows_rounds_whose_events_are_gone() -> None:
    records, view = round_records(), _view()

    view.go_on([RoundFinished(at=0.0, record=records[2])], records[:3])

    line = view.apply(RoundFinished(at=0.0, record=records[3]))
    assert [record.round_number for record in view.rounds] == [0, 1, 2, 3]
    assert view.quality() == ("403.4", "20.1")
    assert line is not None
    assert line.startswith("round 3/3")


def test_devices_show_arm_state_and_step() -> None:
    view = _view()
    view.apply(RoundStarted(at=0.0, round_number=1, arms={"device-1": "0.25:8"}))
    view.apply(_seen("device-1", "training", step=4))
    view.apply(UpdateAccepted(at=0.0, round_number=1, device_id="device-2"))

    first = view.devices["device-1"]
    assert (first.arm, first.state, first.step, first.num_steps) == ("0.25:8", "training", 4, 10)
    assert view.devices["device-2"].has_updated


def test_the_arms_of_a_round_are_a_line_and_stay_in_sight() -> None:
    view = _view()
    view.classes = {"device-1": "tx2"}
    told = [
        view.apply(RoundStarted(at=0.0, round_number=number, arms={"device-1": arm, "device-2": "0.0:8"}))
        for number, arm in ((1, "0.25:8"), (2, "0.421875:6"), (2, "0.421875:6"))
    ]

    assert told[0] == "round 1/3, arms: device-1 (emulated tx2) 0.25:8, device-2 0.0:8"
    assert told[1] == "round 2/3, arms: device-1 (emulated tx2) 0.42:6, device-2 0.0:8"
    assert (view.devices["device-1"].earlier, view.devices["device-1"].arm) == (("0.25:8",), "0.42:6")
    assert view.apply(RoundStarted(at=0.0, round_number=3, arms={})) is None


def test_the_arms_of_a_large_fleet_are_not_all_told() -> None:
    view = RunView("causal-lm", (), 3, LORA_AXES)
    line = view.apply(RoundStarted(at=0.0, round_number=1, arms={f"device-{n}": "0.0:8" for n in range(30)}))

    assert line is not None
    assert line.endswith("device-7 0.0:8, and 22 more")


def test_a_device_that_rests_keeps_the_steps_it_made() -> None:
    view = _view()
    view.apply(_seen("device-1", "training", step=10))
    resting = DeviceSeen(at=0.0, device_id="device-1", state="idle", round_number=0, step=0, num_steps=0, detail="")
    view.apply(resting)

    assert (view.devices["device-1"].state, view.devices["device-1"].step) == ("idle", 10)


def test_between_rounds_the_server_works() -> None:
    view = _view()
    view.apply(RoundStarted(at=0.0, round_number=1, arms={"device-1": "0.0:8", "device-2": "0.0:8"}))
    view.apply(UpdateAccepted(at=0.0, round_number=1, device_id="device-1"))
    assert not view.is_between_rounds
    view.mark_ended("device-2")

    assert view.is_between_rounds


def test_a_device_that_goes_offline_is_worth_one_line() -> None:
    view = _view()

    lines = [view.apply(_seen("device-1", "offline", detail="power cut")) for _ in range(2)]

    assert lines == ["device-1 went offline: power cut", None]


def test_good_byes_after_the_last_round_are_not_worth_a_line() -> None:
    view = _view()
    view.apply(RoundFinished(at=0.0, record=round_records()[-1]))

    assert view.apply(_seen("device-1", "offline", detail="the run is over")) is None


def test_time_left_is_what_the_rounds_so_far_took() -> None:
    view = _view()
    assert view.time_left_s is None
    for record in round_records()[:2]:
        view.apply(RoundFinished(at=0.0, record=record))

    assert view.time_left_s == pytest.approx(8.0)


def test_a_round_that_is_told_twice_counts_once() -> None:
    view = _view()
    for record in [*round_records()[:2], round_records()[1]]:
        view.apply(RoundFinished(at=0.0, record=record))

    assert [record.round_number for record in view.rounds] == [0, 1]


def test_a_pipe_gets_plain_lines_with_the_time() -> None:
    stream, now = io.StringIO(), iter([10.0, 12.5])
    with PlainDisplay[RunView](stream, clock=lambda: next(now)) as display:
        display.step("exporting")
        display.refresh(_view())

    assert stream.getvalue() == "[   2.5 s] exporting\n"
    assert isinstance(make_display(io.StringIO(), render), PlainDisplay)


def test_a_terminal_gets_a_table_of_devices_and_a_bar_of_rounds(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write(RoundFinished(at=0.0, record=round_records()[0]))
    log.write(RoundStarted(at=0.0, round_number=1, arms={"device-2": "0.5:4"}))
    log.write(_seen("device-2", "training", step=3))
    log.close()
    view = _view()
    for event in EventReader(tmp_path / "events.jsonl").new_events():
        view.apply(event)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)

    with LiveDisplay(console, render, clock=lambda: 0.0) as display:
        display.step("3 devices begin")
        display.refresh(view)

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("3 devices begin", "device-2", "training", "0.5:4", "3/10", "round 1/3", "perplexity 403.4"):
        assert part in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_live_display_keeps_to_the_terminal_s_letters(encoding: str) -> None:
    out = io.BytesIO()
    stream = io.TextIOWrapper(out, encoding=encoding, errors="strict")
    view = _view()
    for record in round_records():
        view.apply(RoundFinished(at=0.0, record=record))

    with LiveDisplay(
        Console(file=stream, force_terminal=True, legacy_windows=False), render, clock=lambda: 1.0
    ) as display:
        display.step("exporting")
        display.refresh(view)

    assert b"round 3/3" in out.getvalue()


def test_words_in_brackets_are_no_colours() -> None:
    """Text of devices may hold what rich takes for markup: it is shown as it is."""
    view = _view()
    view.apply(_seen("[red]device[/red]", "[bold]training[/bold]", step=3))
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)

    with LiveDisplay(console, render, clock=lambda: 0.0) as display:
        display.step("[blink]offline: [link=http://x]why[/link]")
        display.refresh(view)

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("[red]device[/red]", "[bold]training[/bold]", "[blink]offline: [link=http://x]why[/link]"):
        assert part in shown


def test_lines_stay_lines() -> None:
    """A step's text of an older event log may be anything."""
    stream = io.StringIO()
    PlainDisplay(stream, clock=lambda: 0.0).step("done\n[   0.0 s] forged \x1b[2J")
    assert stream.getvalue() == "[   0.0 s] done\\n[   0.0 s] forged \\x1b[2J\n"
