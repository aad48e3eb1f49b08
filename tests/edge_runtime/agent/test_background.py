from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edge_runtime.agent.background import ABANDON_S, MAX_ABANDONED, Background


class Bench:
    """A background with a clock to turn, and jobs that end when the test says so, not when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.background: Background[str] = Background(lambda: self.now)
        self.may_end = threading.Event()

    def start(self, tag: str) -> None:
        self.background.start(tag, lambda _: "late" if self.may_end.wait(30) else "never")

    def stop_and_wait(self) -> None:
        self.background.stop()
        self.now += ABANDON_S


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.may_end.set()


def test_a_job_that_does_not_end_is_left_alone_and_nothing_comes_of_it(bench: Bench) -> None:
    bench.start("stuck")
    bench.background.stop()
    bench.now += ABANDON_S - 1
    assert bench.background.is_busy
    with pytest.raises(RuntimeError, match="runs already"):
        bench.start("too early")
    bench.now += 1
    assert not bench.background.is_busy
    stuck = bench.background._thread
    bench.background.start("next", lambda _: "done")
    assert bench.background.outcomes.get(timeout=10) == ("next", "done")
    bench.may_end.set()
    assert stuck is not None
    stuck.join(10)
    assert bench.background.outcomes.empty()


def test_a_job_that_nobody_stopped_may_take_as_long_as_it_likes(bench: Bench) -> None:
    bench.start("long")
    bench.now += 100 * ABANDON_S
    assert bench.background.is_busy


def test_being_told_again_does_not_give_more_time(bench: Bench) -> None:
    bench.start("stuck")
    bench.background.stop()
    bench.now += ABANDON_S - 1
    bench.background.stop()
    bench.now += 1
    assert not bench.background.is_busy


def test_jobs_that_do_not_end_are_few(bench: Bench) -> None:
    for number in range(MAX_ABANDONED + 1):
        bench.start(f"stuck {number}")
        bench.stop_and_wait()
    assert bench.background.is_busy
    bench.may_end.set()
    assert bench.background.join(10)
    assert not bench.background.is_busy
