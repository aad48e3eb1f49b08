"""A device that missed rounds: it does them again and pulls nothing, or pulls, and is never wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.errors import StoppedError
from edge_runtime.agent.methods.zero_order.catching_up import NoiseRate
from edge_runtime.agent.methods.zero_order.kept import Kept, Start
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import digest_of
from edge_runtime.formats.payload import Payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.wire.logged_rounds import LoggedRound, PreconditionerStart
from edge_runtime.wire.messages import Assignment
from edge_runtime.zero_order.parts import TunedParts, count_elements
from edge_runtime.zero_order.preconditioner import apply_log
from tests.edge_runtime.agent.methods.runners import Make
from tests.edge_runtime.agent.methods.zero_order_work import (
    after,
    assignment_of,
    context_of,
    payload,
    rounds_of,
    work_of,
)
from tests.edge_runtime.agent.test_assignment_runner import StopAfter

SLOW, FAST = 1.0, 1e15
"""Bytes a second of the network."""
FIRST = 4
"""The last round of the device."""


@pytest.fixture
def kept(tmp_path: Path, make_runner: Make) -> Kept:
    """The files that are kept of round 4."""
    made = Kept(tmp_path / "methods" / "zero_order")
    made.save_start(start_of(payload(make_runner().artifact.manifest)))
    return made


def start_of(blob: bytes, **changes: Any) -> Start:
    fields = {"run_id": "run", "round_number": FIRST, "digest": digest_of(blob), "pull_rate": None, "payload": blob}
    return Start(**{**fields, **changes})


def late(runner: AssignmentRunner, num_missed: int, log: tuple[LoggedRound, ...] | None = None) -> Assignment:
    """The assignment of a round after others, and the log that the server sends, if not another."""
    work = work_of()
    rounds = rounds_of(work, range(FIRST, FIRST + num_missed))
    blob = after(runner.artifact.manifest, payload(runner.artifact.manifest), work, rounds)
    return assignment_of(blob, work_of(log=rounds if log is None else log), FIRST + num_missed)


def rebuild(runner: AssignmentRunner, assignment: Assignment, pull_rate: float | None = SLOW, **context: Any) -> bool:
    """Return whether the payload was rebuilt; a rebuilt payload is right in any case."""
    made = runner.rebuild(assignment, context_of(runner, pull_rate=pull_rate, **context))
    assert assignment.payload is not None
    assert made is None or digest_of(made) == assignment.payload.digest
    return made is not None


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("num_missed", [1, 2, 50])
def test_a_device_that_missed_rounds_does_them_again(make_runner: Make, num_missed: int) -> None:
    runner = make_runner()
    assert rebuild(runner, late(runner, num_missed))


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("is_normalised", [False, True])
def test_a_preconditioner_is_made_of_the_rounds_before(make_runner: Make, *, is_normalised: bool) -> None:
    """It began two rounds before the last one of the device: those count for it, and not for theta."""
    runner, work = make_runner(), work_of()
    manifest, blob = runner.artifact.manifest, payload(make_runner().artifact.manifest)
    start = PreconditionerStart(round_number=FIRST - 2, lower=2.0, upper=0.5)
    changes: dict[str, Any] = {"cut": 1, "preconditioner": start, "is_normalised": is_normalised}
    rounds = rounds_of(work, range(FIRST - 2, FIRST + 3), **changes)
    layout = AdapterLayout.of(manifest, Plan.full(manifest), 2)
    flat = layout.flatten(decode_payload(blob).adapter)
    apply_log(flat, manifest, 2, work.seed, rounds, FIRST)
    later = encode_payload(Payload(adapter=layout.unflatten(flat)))
    assert rebuild(runner, assignment_of(later, work_of(log=rounds, preconditioner=start), FIRST + 3))


@pytest.mark.usefixtures("kept")
def test_rounds_before_the_last_one_of_the_device_are_not_done_again(make_runner: Make) -> None:
    runner = make_runner()
    rounds = rounds_of(work_of(), range(FIRST, FIRST + 3))
    assert rebuild(runner, late(runner, 3, (*rounds_of(work_of(), (1, 2, 3), seed=9), *rounds)))


@pytest.mark.usefixtures("kept")
def test_the_payload_that_is_here_is_not_made_again(make_runner: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoiseRate, "replay_s", lambda *_: pytest.fail("nothing is to be done"))
    runner = make_runner()
    blob = payload(runner.artifact.manifest)
    assert rebuild(runner, assignment_of(blob, work_of(log=rounds_of(work_of(), (1, 2, 3))), FIRST, attempt=2))


def drop(numbers: set[int]) -> Callable[[tuple[LoggedRound, ...]], tuple[LoggedRound, ...]]:
    return lambda rounds: tuple(one for one in rounds if one.round_number not in numbers)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "cut",
    [drop({FIRST}), drop({FIRST + 1}), drop({FIRST + 2}), drop({FIRST, FIRST + 1, FIRST + 2})],
    ids=["the first is lacking", "a gap", "the last is lacking", "none"],
)
def test_a_log_with_a_gap_leads_to_a_pull(
    make_runner: Make, cut: Callable[[tuple[LoggedRound, ...]], tuple[LoggedRound, ...]]
) -> None:
    runner = make_runner()
    assert not rebuild(runner, late(runner, 3, cut(rounds_of(work_of(), range(FIRST, FIRST + 3)))))


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "change", [{"scalars": b"\0" * 71}, {"scalars": b"\xff" * 72}, {"cut": 7}], ids=["half a scalar", "NaN", "cut"]
)
def test_a_log_that_is_malformed_leads_to_a_pull(make_runner: Make, change: dict[str, Any]) -> None:
    runner = make_runner()
    (logged,) = rounds_of(work_of(), (FIRST,))
    assert not rebuild(runner, late(runner, 1, (msgspec.structs.replace(logged, **change),)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:36] + b"\xff" + data[37:],
        lambda _: b"",
    ],
    ids=["cut", "cut in the header", "payload", "digest", "header", "empty"],
)
def test_a_file_that_is_damaged_leads_to_a_pull(
    make_runner: Make, kept: Kept, tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    runner, file = make_runner(), tmp_path / "methods/zero_order/start"
    assert rebuild(runner, late(runner, 1))
    file.write_bytes(damage(file.read_bytes()))
    assert not rebuild(runner, late(runner, 1))
    assert "damaged and of no use" in caplog.text
    assert not file.exists()
    kept.save_start(start_of(payload(runner.artifact.manifest)))
    assert rebuild(runner, late(runner, 1))


def test_what_was_kept_of_another_run_or_model_leads_to_a_pull(make_runner: Make, kept: Kept) -> None:
    runner = make_runner()
    blob = payload(runner.artifact.manifest)
    for start in (
        start_of(blob, run_id="another"),
        start_of(payload(runner.artifact.manifest, seed=1)),
        start_of(payload(runner.artifact.manifest, rank=3)),
        start_of(b"no tensors"),
    ):
        kept.save_start(start)
        assert not rebuild(runner, late(runner, 1))
    assert not rebuild(make_runner(methods=None), late(runner, 1))


def test_the_faster_way_is_taken_by_what_was_measured(make_runner: Make, kept: Kept) -> None:
    runner = make_runner()
    blob = payload(runner.artifact.manifest)
    assert rebuild(runner, late(runner, 2), SLOW)
    assert not rebuild(runner, late(runner, 2), FAST)
    assert not rebuild(make_runner(), late(runner, 2), None), "nothing was ever measured"
    kept.save_start(start_of(blob, pull_rate=SLOW))
    assert rebuild(make_runner(), late(runner, 2), None), "an earlier process measured it"
    assert not rebuild(make_runner(), late(runner, 2), FAST), "the newest figure counts"


def test_the_rate_of_an_earlier_process_is_kept_where_nothing_is_pulled(
    make_runner: Make, kept: Kept, tmp_path: Path
) -> None:
    runner = make_runner()
    kept.save_start(start_of(payload(runner.artifact.manifest), pull_rate=SLOW))
    assignment = late(runner, 2)
    context = context_of(runner)
    blob = runner.rebuild(assignment, context)
    assert blob is not None
    runner.run(assignment, blob, context)
    start = Kept(tmp_path / "methods" / "zero_order").load_start("run")
    assert start is not None
    assert (start.round_number, start.pull_rate, start.payload) == (FIRST + 2, SLOW, blob)


def test_the_time_of_a_replay_is_that_of_its_vectors_and_elements(make_runner: Make) -> None:
    """Two rounds, at cuts 1 and 0, of three steps: 18 inner perturbations, and 6 outer ones of a lower part."""
    manifest, work = make_runner().artifact.manifest, work_of()
    rounds = rounds_of(work, (1, 2))
    tuned = [TunedParts.of(manifest, 2, cut) for cut in (1, 0)]
    vectors = sum(18 * len(parts.upper) + 6 * len(parts.lower) for parts in tuned)
    elements = sum(18 * count_elements(parts.upper) + 6 * count_elements(parts.lower) for parts in tuned)
    assert tuned[0].lower
    assert NoiseRate(1.0, 0.0).replay_s(manifest, 2, rounds, 1) == vectors
    assert NoiseRate(0.0, 1.0).replay_s(manifest, 2, rounds, 1) == elements
    still = [msgspec.structs.replace(logged, lower_learning_rate=0.0) for logged in rounds]
    assert NoiseRate(1.0, 0.0).replay_s(manifest, 2, still, 1) == sum(18 * len(parts.upper) for parts in tuned)
    start = PreconditionerStart(round_number=1, lower=1.0, upper=1.0)
    scaled = [msgspec.structs.replace(logged, preconditioner=start) for logged in rounds]
    assert NoiseRate(1.0, 0.0).replay_s(manifest, 2, scaled, 1) == 2 * vectors
    assert NoiseRate(1.0, 0.0).replay_s(manifest, 2, scaled, 3) == vectors
    assert NoiseRate(1.0, 0.0).replay_s(manifest, 2, rounds, 3) == 0
    measured = NoiseRate.measure("rademacher")
    assert 0 < measured.vector_s < 0.1
    assert 0 <= measured.element_s < 1e-5


@pytest.mark.usefixtures("kept")
def test_a_stop_ends_it(make_runner: Make) -> None:
    runner = make_runner()
    with pytest.raises(StoppedError):
        rebuild(runner, late(runner, 3), stop=StopAfter(1))


def test_a_full_disk_keeps_nothing_and_work_goes_on(make_runner: Make, tmp_path: Path) -> None:
    runner = make_runner()
    (tmp_path / "methods" / "zero_order").rmdir()
    (tmp_path / "methods" / "zero_order").write_text("in the way")
    blob = payload(runner.artifact.manifest)
    update, _ = runner.run(assignment_of(blob, work_of()), blob, context_of(runner))
    assert update.inline


def test_what_a_cut_write_left_is_removed(tmp_path: Path) -> None:
    for name in (".start.0123abcd.part", ".steps.0123abcd.part", "another"):
        (tmp_path / name).write_bytes(b"half")
    Kept(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["another"]
