"""A run in one process: the coordinator, the artifact server and real devices, over a broker inside it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import pytest
import uvicorn

from broker_server.config import CoordinatorConfig
from broker_server.errors import StoreError
from broker_server.methods.method import Combined, Method
from broker_server.methods.pruning.config import PruningConfig
from broker_server.methods.training import TrainingConfig
from broker_server.serving.services.artifacts import make_app, server_config
from broker_server.serving.services.gate import Gate
from broker_server.serving.storage.events import AnyEvent, DeviceSeen, EventReader, RoundFinished
from broker_server.serving.storage.records import RoundRecord
from edge_runtime.agent.agent import Agent
from edge_runtime.agent.opening import open_agent
from edge_runtime.agent.settings import AgentSettings, WorkSettings
from edge_runtime.engine.artifact import Artifact
from edge_runtime.errors import ExitCode
from edge_runtime.link.in_process import InProcessBroker, InProcessLink
from edge_runtime.wire.arms import LORA_AXES
from tests import waiting
from tests.broker_server.conftest import Coordination

FLEET: Final = "one-process"
NAMES: Final = ("attic", "barn", "cellar")
NUM_ROUNDS: Final = 2
NUM_STEPS: Final = 6
WAIT_S: Final = 60.0
wait_until = functools.partial(waiting.wait_until, timeout_s=WAIT_S)


class Board(threading.Thread):
    """A device from its state directory to its exit code, as ``fedspine-edge start`` makes one.

    Attributes:
        agent: and its ``link``, from when it is open.
        result: exit code, or the error that ended it.
    """

    agent: Agent
    link: InProcessLink

    def __init__(self, broker: InProcessBroker, folder: Path, name: str, memory_limit_bytes: int) -> None:
        super().__init__(name=name, daemon=True)
        self.result: object = None
        self.state = folder / name
        self._broker = broker
        self._memory_limit_bytes = memory_limit_bytes
        self._data = write_examples(folder / f"{name}.jsonl", name)

    def run(self) -> None:
        settings = AgentSettings(
            open_link=self._open_link,
            fleet=FLEET,
            work=WorkSettings(
                data=self._data,
                num_holdout=4,
                num_threads=1,
                memory_limit_bytes=self._memory_limit_bytes,
                checkpoint_every=1,
                sends_activations=True,
            ),
            exit_when_finished=True,
        )
        try:
            with open_agent(settings, self.state, self.name) as self.agent:
                self.result = self.agent.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.result = error

    def _open_link(self, **how: Any) -> InProcessLink:
        self.link = self._broker.open_link(**how)
        return self.link


class WholeRun:
    """The run directory, and who takes part.

    Attributes:
        steps: numbers of the training steps of each device, in order, those that were made again included.
    """

    def __init__(self, folder: Path, broker: InProcessBroker) -> None:
        self.run_dir = folder / "run"
        self.broker = broker
        self.boards: dict[str, Board] = {}
        self.steps: dict[str, list[int]] = {name: [] for name in NAMES}

    def start(self, name: str, memory_limit_bytes: int = 10**9) -> None:
        """Start a device, again where it was there before."""
        self.boards[name] = board = Board(self.broker, self.run_dir.parent, name, memory_limit_bytes)
        board.start()

    def play(
        self,
        coordinate: Callable[[Path], Coordination],
        devices: Mapping[str, int],
        artifact: Path,
        broker_url: str,
        **changes: Any,
    ) -> Self:
        """Play the run until its coordinator ends, or go on with it where it was begun; then end the devices.

        Args:
            coordinate: starts a coordinator on a run directory.
            devices: memory limits in bytes, by name.
            artifact: of a run that is to be made, as the next two.
            broker_url: of its configuration.
            changes: of its configuration.

        Raises what the coordinator raised.
        """
        artifacts = self.run_dir / "artifacts"
        is_new = not artifacts.exists()
        artifacts.mkdir(parents=True, exist_ok=True)
        with artifact_server(artifacts) as url:
            if is_new:
                write_run(self.run_dir, artifact, url, broker_url, **changes)
            running = coordinate(self.run_dir)
            for device_id, limit in devices.items():
                self.start(device_id, limit)
            try:
                running.finish(WAIT_S)
            finally:
                for board in self.boards.values():
                    board.agent.stop(ExitCode.OK, "the run is over")
                    board.join(WAIT_S)
        return self

    @property
    def records(self) -> list[RoundRecord]:
        """Of all rounds that are over."""
        return [event.record for event in self._events() if isinstance(event, RoundFinished)]

    @property
    def accuracies(self) -> list[float]:
        """On the server's examples, by round."""
        return [record.evaluation.accuracy for record in self.records if record.evaluation is not None]

    @property
    def losses(self) -> list[float]:
        """On the server's examples, by round."""
        return [record.evaluation.loss for record in self.records if record.evaluation is not None]

    def partings(self, name: str) -> list[str]:
        """Return the reason that was given each time a device went offline."""
        seen = [event for event in self._events() if isinstance(event, DeviceSeen) and event.device_id == name]
        return [event.detail for event in seen if event.state == "offline"]

    @property
    def adapters(self) -> list[bytes]:
        """Files of the global adapters, by round."""
        return [path.read_bytes() for path in sorted((self.run_dir / "adapters").glob("round-*.safetensors"))]

    def _events(self) -> list[AnyEvent]:
        return list(EventReader(self.run_dir / "events.jsonl").new_events())


@contextlib.contextmanager
def cut_before_combining(method: type[Method], round_number: int) -> Iterator[None]:
    """Let coordinators of a method end when all replies of a round are stored and none is combined."""
    combine = method.combine

    def fail(made: Method, number: int, *rest: Any) -> Combined:
        if number == round_number:
            msg = "cut"
            raise StoreError(msg)
        return combine(made, number, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(method, "combine", fail)
        yield


def write_examples(path: Path, name: str) -> Path:
    """Examples of one device: the same at every start, others for another name."""
    animal = {"attic": "cat", "barn": "dog", "cellar": "bird"}.get(name, "cat")
    rows = [
        {"text": f"the {label} {animal} {verb}", "label": label}
        for label in ("red", "green", "blue")
        for verb in ("runs", "sings", "sleeps", "falls")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 2), encoding="utf-8")
    return path


def write_run(run_dir: Path, artifact: Path, artifact_url: str, broker_url: str, **changes: Any) -> None:
    """A run of two arms and of LoRA importance for three devices; each round is evaluated on the server."""
    digest = Artifact.open(artifact).digest
    shutil.copytree(artifact, run_dir / "artifacts" / digest)
    write_examples(run_dir / "test.jsonl", "server")
    base = CoordinatorConfig(
        run_id="whole",
        fleet=FLEET,
        broker_url=broker_url,
        artifact_url=artifact_url,
        artifact_digest=digest,
        num_devices=3,
        training=TrainingConfig(
            num_rounds=NUM_ROUNDS, num_local_steps=NUM_STEPS, batch_size=4, max_length=8, learning_rate=2e-2
        ),
        arms=LORA_AXES.parse("0.0:4,0.5:2"),
        scheduler="fixed",
        pruning=PruningConfig(importance="lora", importance_every_steps=2),
        test_file="test.jsonl",
        rejoin_s=WAIT_S,
        num_threads=1,
    )
    config = dataclasses.replace(base, **changes)
    (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")


@contextlib.contextmanager
def artifact_server(artifacts: Path) -> Iterator[str]:
    """The server of ``fedspine artifacts`` in a thread; its URL."""
    gate = Gate(16, time.monotonic)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(server_config(make_app(artifacts, gate), gate))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
