from __future__ import annotations

import random

import pytest

from edge_runtime.agent.attempts import FLOOR_S, LARGEST_S, Attempts


class Latest(random.Random):
    """No jitter: the latest time that is allowed."""

    def uniform(self, _a: float, b: float) -> float:
        return b


class Desk:
    def __init__(self, rng: random.Random | None = None) -> None:
        self.now = 1000.0
        self.attempts = Attempts(rng or Latest(), lambda: self.now)

    def due_in(self) -> float:
        """Seconds until the next attempt is due, to the quarter."""
        began = self.now
        while not self.attempts.is_due:
            self.now += 0.25
        waited, self.now = self.now - began, began
        return waited


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_first_attempt_is_due_at_once(desk: Desk) -> None:
    assert desk.attempts.is_due


def test_delays_double_up_to_the_cap(desk: Desk) -> None:
    delays = []
    for _ in range(12):
        assert desk.attempts.failed() == desk.due_in()
        delays.append(desk.due_in())
        desk.now += delays[-1]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, LARGEST_S, LARGEST_S]
    assert desk.attempts.failed(60.0) == 60.0


def test_delays_are_drawn_from_zero_on() -> None:
    desk = Desk(random.Random(3))
    delays = [desk.attempts.failed() for _ in range(200)][20:]
    assert min(delays) < 60
    assert 540 < max(delays) <= LARGEST_S
    assert 200 < sum(delays) / len(delays) < 400


def test_news_is_followed_soon_but_not_at_once(desk: Desk) -> None:
    for _ in range(10):
        desk.attempts.failed()
    desk.attempts.news()
    assert desk.due_in() == FLOOR_S
    desk.now += 100
    desk.attempts.news()
    assert desk.attempts.is_due


def test_a_flood_of_news_leads_to_one_attempt_each_floor(desk: Desk) -> None:
    tried = 0
    for _ in range(400):
        desk.attempts.news()
        if desk.attempts.is_due:
            desk.attempts.failed()
            tried += 1
        desk.now += 0.1
    assert tried <= 40 / FLOOR_S + 1 + 5, "the first delays are shorter than the floor"


def test_news_never_makes_a_delay_longer(desk: Desk) -> None:
    desk.attempts.failed()
    desk.attempts.news()
    assert desk.due_in() == 1


def test_what_works_begins_anew(desk: Desk) -> None:
    for _ in range(10):
        desk.attempts.failed()
    desk.attempts.begin_anew()
    assert desk.due_in() == FLOOR_S
    assert desk.attempts.failed() == 1
