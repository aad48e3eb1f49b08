from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from edge_runtime.system.background import ABANDON_S, MAX_ABANDONED, Background, Ended


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

    def wait(self) -> Ended[str]:
        end = time.monotonic() + 10
        while (ended := self.background.poll()) is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        return ended


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
    assert bench.wait() == Ended("next", "done")
    bench.may_end.set()
    assert stuck is not None
    stuck.join(10)
    assert bench.background.poll() is None


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
    end = time.monotonic() + 10
    while bench.background.is_busy:  # until the first of those threads is gone
        assert time.monotonic() < end
        time.sleep(0.001)


def test_another_job_may_begin_once_the_end_of_one_was_polled(bench: Bench) -> None:
    for number in range(100):  # its thread may still be alive then
        bench.background.start(number, lambda _: "done")
        assert bench.background.is_busy
        assert bench.wait() == Ended(number, "done")
        assert not bench.background.is_busy
        assert bench.background.poll() is None


def test_a_job_that_ended_counts_as_running_until_somebody_looks(bench: Bench) -> None:
    bench.background.start("first", lambda _: "done")
    assert bench.background.join(10)
    assert bench.background.is_busy
    with pytest.raises(RuntimeError, match="runs already"):
        bench.start("second")
    assert bench.wait().result() == "done"


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(3)])
def test_what_a_job_raises_reaches_its_owner(bench: Bench, error: BaseException) -> None:
    def job(_stop: threading.Event) -> str:
        raise error

    bench.background.start("fails", job)
    ended = bench.wait()
    assert ended.outcome is error
    with pytest.raises(type(error)):
        ended.result()
    assert not bench.background.is_busy


def test_a_replaced_job_that_ended_in_time_to_be_polled_is_not_taken_for_the_next(bench: Bench) -> None:
    bench.start("late")
    bench.stop_and_wait()
    late = bench.background._thread
    may_end = threading.Event()
    bench.background.start("next", lambda _: "done" if may_end.wait(30) else "never")
    bench.may_end.set()
    assert late is not None
    late.join(10)
    assert bench.background.poll() is None
    assert bench.background.is_busy
    may_end.set()
    assert bench.wait() == Ended("next", "done")
