from __future__ import annotations

from edge_runtime.agent.reporter import Reporter
from edge_runtime.agent.traffic import Traffic
from edge_runtime.wire.messages import AssignmentKey, DeviceState, Status


class Listener:
    def __init__(self) -> None:
        self.now = 0.0
        self.heard: list[Status] = []
        self.reporter = Reporter("board-7", "s", self.heard.append, lambda: self.now)


def key(round_number: int) -> AssignmentKey:
    return AssignmentKey(run_id="run", round_number=round_number, device_id="board-7", attempt=1)


def test_a_change_is_said_at_once() -> None:
    listener = Listener()
    listener.reporter.change(DeviceState.TRAINING, key(3))
    listener.reporter.change(DeviceState.UPLOADING, key(3), detail="soon")
    assert [(s.state, s.round_number, s.attempt, s.detail) for s in listener.heard] == [
        (DeviceState.TRAINING, 3, 1, ""),
        (DeviceState.UPLOADING, 3, 1, "soon"),
    ]


def test_progress_is_said_about_once_a_second() -> None:
    listener = Listener()
    listener.reporter.change(DeviceState.TRAINING, key(1))
    for step in range(1, 101):
        listener.now += 0.125
        listener.reporter.progress.step = step
        listener.reporter.tick()
    assert [s.step for s in listener.heard[1:]] == list(range(8, 101, 8))


def test_an_idle_device_sends_a_heartbeat() -> None:
    listener = Listener()
    listener.reporter.change(DeviceState.IDLE)
    for _ in range(60):
        listener.now += 1
        listener.reporter.tick()
    assert len(listener.heard) == 1 + 4


def test_a_new_state_forgets_the_old_progress() -> None:
    listener = Listener()
    listener.reporter.change(DeviceState.TRAINING, key(1))
    listener.reporter.progress.step = 7
    listener.reporter.change(DeviceState.IDLE)
    assert listener.heard[-1].step == 0


def test_a_long_detail_is_cut() -> None:
    listener = Listener()
    listener.reporter.change(DeviceState.IDLE, detail="x" * 5000)
    assert len(listener.heard[0].detail) == 500


def test_traffic_counts_each_byte_once() -> None:
    totals = [100, 50]
    traffic = Traffic(lambda: (totals[0], totals[1]))
    traffic.add_http(1000)
    assert traffic.settle(upload_bytes=400) == (500, 1050)
    totals[:] = [100 + 400 + 7, 50 + 3]
    assert traffic.settle(upload_bytes=0) == (7, 3)
