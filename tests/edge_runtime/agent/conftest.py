"""Updates to put into outboxes, and real devices with a coordinator to talk to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.errors import ExitCode
from edge_runtime.wire import chunks
from edge_runtime.wire.measures import Measurements
from edge_runtime.wire.messages import AssignmentKey, Update
from tests.edge_runtime.agent.stage import EXAMPLES, Coordinator, Device, Site, StartDevice

MakeUpdate = Callable[..., Update]


@pytest.fixture
def make_update() -> MakeUpdate:
    def make(
        blob: bytes, round_number: int = 1, attempt: int = 1, run_id: str = "run", *, is_inline: bool = False
    ) -> Update:
        return Update(
            key=AssignmentKey(run_id=run_id, round_number=round_number, device_id="board-7", attempt=attempt),
            blob=None if is_inline else chunks.describe(blob, limits.MIN_CHUNK_BYTES),
            inline=blob if is_inline else b"",
            num_examples=5,
            train_loss=1.0,
            measurements=Measurements(
                train_s=1.0,
                step_s_p50=0.1,
                step_s_p95=0.2,
                fetch_s=0.0,
                prepare_s=0.0,
                evaluate_s=0.0,
                peak_rss_bytes=1,
                bytes_up=1,
                bytes_down=1,
            ),
        )

    return make


@pytest.fixture
def artifact_dir(tiny_bert_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert_artifact, tmp_path / "artifact"))


@pytest.fixture
def coordinator(mosquitto: Any, artifact_dir: Path) -> Iterator[Coordinator]:
    site = Site(artifact_dir)
    coordinator = Coordinator(mosquitto.url, site.url, Artifact.open(artifact_dir))
    yield coordinator
    coordinator.link.close()
    site.close()


@pytest.fixture
def start_device(mosquitto: Any, tmp_path: Path) -> Iterator[StartDevice]:
    started: list[Device] = []
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(EXAMPLES))

    def start(**settings: Any) -> Device:
        device = Device(mosquitto.url, tmp_path / "state", data, **settings)
        started.append(device)
        return device

    yield start
    for device in started:
        device.agent.stop(ExitCode.OK, "end of the test")
        device.wait()
        device.close()
