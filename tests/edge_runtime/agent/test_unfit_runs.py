"""No message or artifact of a server ends a real device: it reports why, listens, and takes the next good run."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.agent import jobs
from edge_runtime.agent.assignment_runner import AssignmentRunner, prepare
from edge_runtime.engine.errors import DataInvalidError, MissingDependencyError
from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import digest_of
from edge_runtime.link.errors import ArtifactUnreachableError
from edge_runtime.link.http import fetch_small
from edge_runtime.wire.messages import Cancel, DeviceState, Failure, FailureReason, Presence, Register, Status, Update
from edge_runtime.wire.work import Arm
from tests.edge_runtime.agent.stage import Coordinator, Device, StartDevice

Bend = Callable[[Path], None]


def publish_bent(coordinator: Coordinator, artifact_dir: Path, bend: Bend, run_id: str = "bent") -> None:
    """Bend a copy of the artifact, and serve the copy beside the good one; manifest and files agree again."""
    bent = artifact_dir / run_id
    shutil.copytree(artifact_dir, bent, ignore=shutil.ignore_patterns("bent*"))
    bend(bent)
    manifest = json.loads((bent / "manifest.json").read_bytes())
    for name, ref in manifest["files"].items():
        if ref["size_bytes"] < 1 << 39 and (bent / name).exists():
            data = (bent / name).read_bytes()
            ref.update(digest=digest_of(data), size_bytes=len(data))
    (bent / "manifest.json").write_text(json.dumps(manifest))
    digest = digest_of((bent / "manifest.json").read_bytes())
    coordinator.welcome(artifact_url=f"{coordinator.site_url}{run_id}/", artifact_digest=digest, run_id=run_id)


def change(**fields: Any) -> Bend:
    def bend(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))

    return bend


def without_a_file(folder: Path) -> None:
    (folder / "base.safetensors").unlink()


def too_large(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"]["base.safetensors"]["size_bytes"] = 1 << 40
    path.write_text(json.dumps(manifest))


def no_graph(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        path.write_bytes(b"this is no graph")


def other_graph(folder: Path) -> None:
    """A graph that loads, and is for something else."""
    optimizer = (folder / "optimizer.onnx").read_bytes()
    for path in folder.glob("*.onnx"):
        path.write_bytes(optimizer)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"{}")


BENT: dict[str, tuple[Bend, FailureReason]] = {
    "a newer format": (change(format_version=99), FailureReason.ARTIFACT_CORRUPTED),
    "a format that is not a number": (change(format_version="x"), FailureReason.ARTIFACT_CORRUPTED),
    "no layers": (change(num_layers=0), FailureReason.ARTIFACT_CORRUPTED),
    "a field that is missing": (change(tensors=None), FailureReason.ARTIFACT_CORRUPTED),
    "other labels": (change(labels=["good", "bad"]), FailureReason.INTERNAL),
    "a file that is missing": (without_a_file, FailureReason.ARTIFACT_UNREACHABLE),
    "a file larger than the disk": (too_large, FailureReason.DISK_FULL),
    "graphs that do not load": (no_graph, FailureReason.INTERNAL),
    "graphs of something else": (other_graph, FailureReason.INTERNAL),
    "a tokenizer that is none": (no_tokenizer, FailureReason.ARTIFACT_CORRUPTED),
}


def assert_trains(coordinator: Coordinator) -> None:
    """The device takes the good run now, and works."""
    coordinator.welcome(run_id="good")
    coordinator.wait(Status, state=DeviceState.IDLE, detail="")
    coordinator.assign(7, run_id="good")
    assert coordinator.wait(Update, round_number=7).key.run_id == "good"


def test_what_ended_an_assignment_of_another_run_is_not_said_of_this_one(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device still gets ready when the assignment ends, and when the next run begins."""
    may_be_ready = threading.Event()

    def slow(*arguments: Any) -> AssignmentRunner:
        may_be_ready.wait(30)
        return prepare(*arguments)

    monkeypatch.setattr(jobs, "prepare", slow)
    start_device()
    coordinator.wait(Register)
    coordinator.welcome(run_id="other")
    coordinator.wait(Status, state=DeviceState.FETCHING)
    coordinator.assign(run_id="other", deadline_s=0.05)
    coordinator.wait(Failure)
    coordinator.welcome(run_id="good")
    assert coordinator.wait(Status, detail="").state is DeviceState.FETCHING
    may_be_ready.set()
    coordinator.wait(Status, state=DeviceState.IDLE, detail="")
    coordinator.assign(7, run_id="good")
    coordinator.wait(Update, round_number=7)


def test_artifacts_that_cannot_be_used_are_reported_one_after_the_other_and_a_good_one_is_taken(
    coordinator: Coordinator, start_device: StartDevice, artifact_dir: Path
) -> None:
    device = start_device()
    coordinator.wait(Register)
    for number, (name, (bend, reason)) in enumerate(BENT.items()):
        run_id = f"bent-{number}"
        publish_bent(coordinator, artifact_dir, bend, run_id)
        coordinator.assign(run_id=run_id)
        failure = coordinator.wait(Failure, run_id=run_id)
        assert (name, failure.reason) == (name, reason), failure.detail
        assert failure.detail, name
    assert_trains(coordinator)
    assert device.thread.is_alive()
    assert coordinator.silence(Presence, 0.1), "it has not said good-bye"


def test_without_an_assignment_the_status_says_why(
    coordinator: Coordinator, start_device: StartDevice, artifact_dir: Path
) -> None:
    start_device()
    coordinator.wait(Register)
    publish_bent(coordinator, artifact_dir, change(format_version=99))
    told = coordinator.wait(Status, state=DeviceState.FETCHING)
    while "version 99" not in told.detail:
        told = coordinator.wait(Status, state=DeviceState.FETCHING)
    assert_trains(coordinator)


def test_broken_artifacts_do_not_push_the_running_one_out_of_the_cache(
    coordinator: Coordinator, start_device: StartDevice, artifact_dir: Path, tmp_path: Path
) -> None:
    start_device()
    coordinator.bring_in()
    base = tmp_path / "state" / "artifacts" / coordinator.artifact.digest / "base.safetensors"
    downloaded = base.stat()
    for number, bend in enumerate((no_graph, no_tokenizer, too_large)):
        run_id = f"bent-{number}"
        publish_bent(coordinator, artifact_dir, bend, run_id)
        coordinator.assign(run_id=run_id)
        coordinator.wait(Failure, run_id=run_id)
    assert_trains(coordinator)
    assert (base.stat().st_ino, base.stat().st_mtime_ns) == (downloaded.st_ino, downloaded.st_mtime_ns)


def test_an_update_that_nobody_answered_outlives_other_runs(
    coordinator: Coordinator, start_device: StartDevice
) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign()
    mine = coordinator.wait(Update)
    for number in range(3):
        coordinator.welcome(run_id=f"other-{number}")
        coordinator.verdict(mine, accepted=False)  # an honest coordinator of another run, asked too early
        coordinator.say(
            Cancel(
                key=mine.key,
                detail="not mine",
            )
        )
    assert_trains(coordinator)
    coordinator.welcome()
    assert coordinator.wait(Update, run_id=mine.key.run_id) == mine
    coordinator.pull(mine)


UNFIT: dict[str, tuple[dict[str, Any], FailureReason]] = {
    "a batch of 10**9": ({"batch_size": 10**9}, FailureReason.ARM_INFEASIBLE),
    "texts of 2**31": ({"max_length": (1 << 31) - 1}, FailureReason.ARM_INFEASIBLE),
    "ranks that do not fit": ({"arms": (Arm(pruning_ratio=0.0, rank=512),)}, FailureReason.ARM_INFEASIBLE),
    "another digest": ({"artifact_digest": "ab" * 32}, FailureReason.ARTIFACT_CORRUPTED),
    **{
        f"the address {url!r}": (
            {"artifact_url": url, "artifact_digest": "cd" * 32},
            FailureReason.ARTIFACT_UNREACHABLE,
        )
        for url in (
            "file:///etc/",
            "http:///",
            "http://a..b/",
            "http://[::1",
            "http://127.0.0.1:9/",
        )
    },
}


def test_runs_that_this_board_cannot_take_part_in_are_reported_and_a_good_one_is_taken(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.agent.cache.http.fetch_small", functools.partial(fetch_small, max_attempts=1))
    device = start_device(memory_limit_bytes=100_000_000)
    coordinator.wait(Register)
    for number, (name, (welcome, reason)) in enumerate(UNFIT.items()):
        run_id = f"unfit-{number}"
        coordinator.welcome(run_id=run_id, **welcome)
        coordinator.assign(run_id=run_id)
        failure = coordinator.wait(Failure, run_id=run_id)
        assert (name, failure.reason) == (name, reason), failure.detail
    assert_trains(coordinator)
    assert device.thread.is_alive()


def test_a_welcome_that_is_none_is_not_believed(coordinator: Coordinator, start_device: StartDevice) -> None:
    device = start_device()
    coordinator.wait(Register)
    bent: tuple[dict[str, Any], ...] = ({"max_length": 1 << 62}, {"artifact_url": "\x1b"}, {"artifact_digest": "../.."})
    for number, bad in enumerate(bent):
        coordinator.welcome(run_id=f"bad-{number}", **bad)
        coordinator.assign(run_id=f"bad-{number}")
        coordinator.wait(Register)
    assert_trains(coordinator)
    assert device.thread.is_alive()


def test_a_hello_is_a_reason_to_try_again(
    coordinator: Coordinator, start_device: StartDevice, artifact_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = start_device()
    coordinator.wait(Register)
    good = (artifact_dir / "base.safetensors").read_bytes()
    (artifact_dir / "base.safetensors").write_bytes(bytes(len(good)))
    monkeypatch.setattr("edge_runtime.link.backoff.full_jitter", lambda *_, **__: 3600.0)
    coordinator.welcome()
    told = coordinator.wait(Status, state=DeviceState.FETCHING)
    while "is not the file that the manifest names" not in told.detail:
        told = coordinator.wait(Status, state=DeviceState.FETCHING)
    (artifact_dir / "base.safetensors").write_bytes(good)
    coordinator.hello()
    coordinator.wait(Register)
    assert_trains(coordinator)
    assert device.thread.is_alive()


def test_a_message_that_nobody_foresaw_is_survived(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = start_device()
    coordinator.bring_in()
    calls: list[object] = []

    def fail(_self: object, *arguments: object) -> None:
        calls.append(arguments)
        raise OverflowError

    with monkeypatch.context() as patched:
        patched.setattr("edge_runtime.link.transfers.Transfers.expect", fail)
        coordinator.assign()
        coordinator.wait(Status, state=DeviceState.FETCHING)
    assert calls
    coordinator.assign(2)
    assert coordinator.wait(Update).key.round_number == 2
    assert device.thread.is_alive()


def test_a_file_that_turned_bad_ends_the_device_with_a_reason(
    coordinator: Coordinator, start_device: StartDevice, tmp_path: Path
) -> None:
    device = start_device()
    (tmp_path / "data.jsonl").write_text("no JSON\n")
    coordinator.wait(Register)
    coordinator.welcome()
    assert "not JSON" in coordinator.wait(Presence, online=False).detail
    error = device.wait()
    assert isinstance(error, DataInvalidError)
    assert error.exit_code == ExitCode.DATA_INVALID


def test_a_package_that_is_missing_ends_the_device_with_a_reason(
    coordinator: Coordinator, start_device: StartDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    device = start_device()
    coordinator.wait(Register)
    coordinator.welcome()
    assert "tokenizers" in coordinator.wait(Presence, online=False).detail
    assert isinstance(device.wait(), MissingDependencyError)


def test_a_detail_that_is_not_unicode_is_sent_escaped(
    coordinator: Coordinator,
    start_device: StartDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, logger="edge_runtime")  # what pytest-xdist passes on must be Unicode

    def fail(*_: object, **__: object) -> None:
        msg = "no file caf\udce9"
        raise ArtifactUnreachableError(msg)

    monkeypatch.setattr("edge_runtime.agent.cache.ArtifactCache.fetch", fail)
    device = start_device()
    coordinator.wait(Register)
    coordinator.welcome()
    coordinator.assign()
    assert coordinator.wait(Failure).detail == "no file caf\\udce9"
    assert isinstance(device, Device)
    assert device.thread.is_alive()
