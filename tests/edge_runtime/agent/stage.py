"""A stage for one device: real broker, real artifact over real HTTP, a coordinator that follows the test's script."""

from __future__ import annotations

import functools
import http.server
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.coordinator_channel import CoordinatorChannel
from edge_runtime.agent.identity import StateDirectory
from edge_runtime.agent.methods.lora.method import stand_in_plan
from edge_runtime.agent.precheck import look_at_examples
from edge_runtime.agent.settings import AgentSettings, WorkSettings
from edge_runtime.bounds import limits
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats import adapter
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.link.address import BrokerAddress
from edge_runtime.link.mqtt import MqttLink, Received
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire import chunks, topics
from edge_runtime.wire.measures import Capabilities
from edge_runtime.wire.messages import (
    AnyMessage,
    Assignment,
    AssignmentKey,
    BlobRef,
    Chunk,
    ChunkRequest,
    DeviceState,
    Hello,
    Register,
    Status,
    Update,
    Verdict,
    Welcome,
    decode_message,
    encode_message,
    kind_of,
)
from edge_runtime.wire.work import Arm, HyperParameters, LoraWork
from tests.replies import blob_of

FLEET, DEVICE, RUN = "lab", "board-7", "run-1"
ARM = Arm(pruning_ratio=0.5, rank=2)
WAIT_S = 30.0

Kind = TypeVar("Kind", bound=AnyMessage)

EXAMPLES = [f'{{"text": "the {c} cat {v}", "label": "{c}"}}' for c in ("red", "blue") for v in ("runs", "sings")] * 6


def _said(message: AnyMessage, name: str) -> object:
    """A field of a message, or of its key."""
    return getattr(message, name) if hasattr(message, name) else getattr(getattr(message, "key", None), name)


class Coordinator:
    """Hears everything that the device says; says what the test tells it to."""

    def __init__(self, broker_url: str, site_url: str, artifact: Artifact) -> None:
        self.artifact = artifact
        self.site_url = site_url
        self.heard: list[AnyMessage] = []
        self.asked: list[str] = []
        """Digests of what the device asked chunks of."""
        self.link = MqttLink(
            BrokerAddress.parse(broker_url),
            client_id="coordinator",
            subscriptions=topics.coordinator_subscriptions(FLEET),
            will=None,
            max_message_bytes=limits.MAX_MESSAGE_BYTES,
            rng=random.Random(0),
        )
        self.transfers = Transfers(lambda _, message: self.say(message), time.monotonic)
        rng = np.random.default_rng(0)
        self.full = adapter.initial(artifact.manifest, artifact.initial(), 4, rng)
        self.link.connect()

    def say(self, message: AnyMessage) -> None:
        self.link.publish(topics.down(FLEET, DEVICE, kind_of(message)), encode_message(message))

    def hello(self) -> None:
        hello = Hello(run_id=RUN, session_id="c")
        self.link.publish(topics.to_all(FLEET, "hello"), encode_message(hello))

    def wait(self, kind: type[Kind], **fields: Any) -> Kind:
        """The next message of a kind with these fields; earlier messages are forgotten."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self._hear()
            while self.heard:
                message = self.heard.pop(0)
                if isinstance(message, kind) and all(_said(message, k) == v for k, v in fields.items()):
                    return message
        pytest.fail(f"no {kind.__name__} with {fields}")

    def silence(self, kind: type[AnyMessage], seconds: float) -> bool:
        """Return whether no message of a kind comes for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._hear()
        return not any(isinstance(m, kind) for m in self.heard)

    def _hear(self) -> None:
        self.transfers.tick()
        try:
            event = self.link.events.get(timeout=0.05)
        except queue.Empty:
            return
        if isinstance(event, Received):
            message = decode_message(event.payload)
            if isinstance(message, Chunk | ChunkRequest):
                self.asked += [message.digest] if isinstance(message, ChunkRequest) else []
                self.transfers.handle(DEVICE, message)
            else:
                self.heard.append(message)

    def welcome(self, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "run_id": RUN,
            "device_id": DEVICE,
            "artifact_url": self.site_url,
            "artifact_digest": self.artifact.digest,
            "arms": (Arm(pruning_ratio=0.0, rank=4), ARM),
            "batch_size": 4,
            "max_length": 16,
            "heartbeat_s": 1.0,
            **changes,
        }
        self.say(Welcome(**fields))

    def bring_in(self, **welcome: Any) -> None:
        """Welcome the device that registers, and wait until it is ready for work."""
        self.wait(Register)
        self.welcome(**welcome)
        self.wait(Status, state=DeviceState.FETCHING)
        self.wait(Status, state=DeviceState.IDLE)

    def offer(self, blob: bytes) -> BlobRef:
        """Let the device pull a payload."""
        ref = chunks.describe(blob)
        self.transfers.offer(ref.digest, lambda: blob)
        return ref

    def assign(self, round_number: int = 1, attempt: int = 1, **changes: Any) -> Assignment:
        arm = changes.get("arm", ARM)
        plan = stand_in_plan(self.artifact.manifest, arm)
        ref = self.offer(encode_tensors(adapter.restrict(self.artifact.manifest, self.full, plan, arm.rank)))
        hyper: dict[str, Any] = {
            "num_local_steps": 4,
            "learning_rate": 1e-2,
            "weight_decay": 0.0,
            "lora_scaling": 2.0,
            "max_grad_norm": 1.0,
            "num_warmup_steps": 1,
            "batch_size": 4,
            "num_accumulation_steps": 1,
            "max_length": 16,
            "seed": 0,
            **changes.pop("hyper", {}),
        }
        work: dict[str, Any] = {"arm": ARM, "plan": plan.packed, "hyper_parameters": HyperParameters(**hyper)}
        work |= {name: changes.pop(name) for name in ("arm", "plan", "prunings") if name in changes}
        assignment = Assignment(
            key=AssignmentKey(
                run_id=changes.pop("run_id", RUN),
                round_number=round_number,
                device_id=changes.pop("device_id", DEVICE),
                attempt=attempt,
            ),
            **{"payload": ref, "deadline_s": 60.0, "work": LoraWork(**work), **changes},
        )
        self.say(assignment)
        return assignment

    def pull(self, update: Update) -> bytes:
        got: list[bytes] = []
        self.transfers.expect(blob_of(update), DEVICE, got.append)
        deadline = time.monotonic() + WAIT_S
        while not got and time.monotonic() < deadline:
            self._hear()
        return got[0]

    def verdict(self, update: Update, *, accepted: bool = True) -> None:
        self.say(
            Verdict(
                key=update.key,
                accepted=accepted,
            )
        )


class Site:
    """A static HTTP server."""

    def __init__(self, directory: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        handler = functools.partial(Handler, directory=str(directory))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class Device:
    """The agent in a thread; how it ended is in ``result``."""

    def __init__(self, broker_url: str, state: Path, data: Path, **settings: Any) -> None:
        self.result: Any = None
        self._state = StateDirectory(state, DEVICE)
        work = WorkSettings(
            data=data,
            num_holdout=settings.pop("num_holdout", 4),
            num_threads=1,
            memory_limit_bytes=settings.pop("memory_limit_bytes", 10**12),
            checkpoint_every=20,
            methods=self._state.methods,
            device_methods=settings.pop("device_methods", {}),
        )
        capabilities = Capabilities(
            architecture="x",
            operating_system="y",
            num_cores=1,
            num_threads=1,
            memory_bytes=1,
            memory_limit_bytes=work.memory_limit_bytes,
            versions={},
            matmul_gflops=1.0,
            memory_copy_gb_s=1.0,
        )
        agent_settings = AgentSettings(
            open_link=functools.partial(MqttLink, BrokerAddress.parse(broker_url)),
            fleet=FLEET,
            work=work,
            **settings,
        )
        rng, examples = random.Random(0), look_at_examples(data)
        channel = CoordinatorChannel(agent_settings.open_link, FLEET, DEVICE, capabilities, examples, rng)
        self.agent = Agent(agent_settings, self._state, channel, rng)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.agent.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.result = error

    def wait(self) -> Any:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        return self.result

    def crash(self) -> None:
        """As kill -9: no good-bye, nothing written any more."""
        link: Any = self.agent._link
        connection = link._connection
        assert connection is not None
        link.close = lambda *_: None
        link._closing.set()
        sock: Any = connection._client.socket()
        sock.shutdown(2)
        self.agent.stop(0, "")  # type: ignore[arg-type]
        self.wait()
        self.close()

    def close(self) -> None:
        self._state.close()


StartDevice = Callable[..., Device]
