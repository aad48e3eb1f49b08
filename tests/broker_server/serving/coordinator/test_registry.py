"""The registry: sessions, heartbeats, and wills that come late."""

from __future__ import annotations

import pytest

from broker_server.serving.coordinator.registry import Registry


@pytest.fixture
def registry() -> Registry:
    one = Registry(silence_s=45.0, max_devices=3)
    one.register("a", "first", 0.0)
    return one


def test_registered_device_is_online(registry: Registry) -> None:
    assert registry.online == ["a"]
    assert registry.heard("a", 1.0)


def test_unknown_device_must_register(registry: Registry) -> None:
    assert not registry.heard("b", 1.0)


def test_a_session_that_speaks_after_another_replaced_it_is_of_a_second_machine(registry: Registry) -> None:
    assert not registry.is_shared("a", "first", 0.0)
    registry.register("a", "second", 2.0)
    registry.register("a", "second", 3.0)
    assert not registry.is_shared("a", "second", 3.0), "a restart, and a reconnect"
    assert not registry.is_shared("a", "first", 4.0), "said before it ended"
    assert registry.is_shared("a", "first", 20.0)
    assert not registry.is_shared("b", "first", 20.0)


def test_a_session_that_registers_after_another_is_of_a_second_machine_at_once(registry: Registry) -> None:
    registry.register("a", "second", 2.0)
    registry.register("a", "first", 2.5)
    assert registry.is_shared("a", "first", 2.5)


def test_good_bye(registry: Registry) -> None:
    assert registry.leave("a", "first")
    assert registry.online == []
    assert not registry.leave("a", "first")
    assert not registry.heard("a", 1.0)


def test_will_of_an_earlier_session_does_not_count(registry: Registry) -> None:
    registry.register("a", "second", 1.0)
    assert not registry.leave("a", "first")
    assert registry.online == ["a"]


def test_silence_counts_once(registry: Registry) -> None:
    assert registry.take_silent(45.0) == []
    assert registry.take_silent(45.1) == ["a"]
    assert registry.take_silent(99.0) == []


def test_heartbeat_keeps_a_device(registry: Registry) -> None:
    registry.heard("a", 40.0)
    assert registry.take_silent(80.0) == []


def test_own_absence_is_not_held_against_devices(registry: Registry) -> None:
    registry.excuse(100.0)
    assert registry.take_silent(140.0) == []
