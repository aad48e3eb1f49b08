"""The coordinator process: one event loop around the state machine of :mod:`broker_server.methods.rounds.machine`.

    devices ──MQTT──> MessageTranslator ──> events ──> machine.advance ──> commands ──> CommandExecutor ──MQTT──>
    devices
                                   ^               │                            │
                                   │          Ledger (disk)                     v
                                   └───────────────────── answers ── aggregation, evaluation (a thread beside)

One thread handles one event after the other. Changes of several steps are made durable together, when no event is
waiting or :data:`GROUP_S` have passed; messages and event lines of these steps are sent after that.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import queue
import random
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from broker_server.config import CONFIG_FILE, CoordinatorConfig
from broker_server.errors import DevicesTooSmallError, RunFailedError
from broker_server.methods.rounds import machine
from broker_server.methods.rounds.types import (
    Aggregate,
    Command,
    DeviceRegistered,
    Evaluate,
    Event,
    FailRun,
    FinishRun,
    RoundLimits,
    RunState,
    Tick,
)
from broker_server.options import flat
from broker_server.serving.callbacks import CallbackWorker, RunInfo, make_callbacks
from broker_server.serving.coordinator import patience
from broker_server.serving.coordinator.command_executor import CommandExecutor
from broker_server.serving.coordinator.device_channel import DeviceChannel
from broker_server.serving.coordinator.ledger import Ledger
from broker_server.serving.coordinator.message_translator import MessageTranslator
from broker_server.serving.coordinator.run_context import RunContext, open_run
from broker_server.serving.services.fleets import Claimant
from broker_server.serving.storage import run_lock
from broker_server.serving.storage.beginning import check_not_lost, check_same_run
from broker_server.serving.storage.events import EVENTS_FILE, EventLog
from broker_server.serving.storage.store import Store
from edge_runtime.bounds import limits
from edge_runtime.link.address import PASSWORD_VARIABLE, BrokerAddress, TlsFiles
from edge_runtime.link.inbox import Connected, Disconnected, Received
from edge_runtime.link.mqtt import MqttLink
from edge_runtime.link.protocol import Link, OpenLink
from edge_runtime.system.files import PRIVATE_FILE, keep_private, write_atomically
from edge_runtime.wire import topics
from edge_runtime.wire.messages import FailureReason, Finished, encode_message, kind_of

logger = logging.getLogger(__name__)

RESOLVED_FILE: Final = "resolved.toml"
"""``config.toml`` with all settings of its method."""
TICK_S: Final = 0.25
"""Longest pause between two reads of the clock, seconds."""
BUSY_TICK_S: Final = 0.02
"""Longest such pause while a background job runs, seconds."""
STALL_S: Final = 2.0
"""Longest time between two steps; after a longer one, messages of devices may still be unread."""
GROUP_S: Final = 0.1
"""Longest time that an event waits to be made durable together with the next ones."""
LINGER_S: Final = 3.0
"""Time that a finished run waits for devices to say good-bye."""


def run_coordinator(run_dir: Path, open_link: OpenLink | None = None) -> None:
    """Coordinate the run in ``run_dir`` (see docs/architecture.md) from its current state to its last round.

    Args:
        run_dir: run directory.
        open_link: prepares the link to the devices; None = over MQTT to the broker that the configuration names.

    Raises:
        ConfigError: ``config.toml`` cannot be used.
        MissingExtraError: a callback needs a package that is not installed.
        StateInUseError: another coordinator holds the directory.
        StoreError: the state on disk cannot be used, is lost, or is of another run.
        EngineError: artifact or held-out file cannot be used.
        BrokerUnreachableError: there is no broker at the start; a connection lost later is retried for ever.
        BrokerRefusedError: the broker refuses.
        FleetInUseError: another coordinator has the fleet, or had it first and reconnected.
        DiskFullError: there is no space; no accepted update is lost.
        RunFailedError: there was no device, or rounds had no update.
        DevicesTooSmallError: the run failed because no device had the memory for any arm.
    """
    config = CoordinatorConfig.load(run_dir / CONFIG_FILE)
    if BrokerAddress.parse(config.broker_url).password is not None:
        keep_private(run_dir / CONFIG_FILE, PRIVATE_FILE)
    callbacks = make_callbacks(config.callbacks)
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(CallbackWorker(callbacks, logger.warning))
        stack.enter_context(run_lock.hold(run_dir))
        check_not_lost(run_dir)
        store = stack.enter_context(contextlib.closing(Store.open(run_dir)))
        check_same_run(run_dir, store, identity_of(config))
        events = stack.enter_context(contextlib.closing(EventLog(run_dir / EVENTS_FILE, worker.happened)))
        run = open_run(run_dir, config, store)
        if config.method:
            write_atomically(run_dir / RESOLVED_FILE, config.to_toml().encode(), is_private=True)
        worker.run_started(
            RunInfo(
                run_id=config.run_id,
                directory=run_dir,
                task=run.manifest.task,
                settings=flat(config),
                axes=config.axes,
            )
        )
        Coordinator(run, store, events, open_link or mqtt_of(config)).run()
        worker.run_finished(None)


def identity_of(config: CoordinatorConfig) -> dict[str, str]:
    """Return the settings that may not change within a run."""
    return {"run_id": config.run_id, "seed": str(config.seed), "artifact_digest": config.artifact_digest}


def unix_now() -> float:
    """Seconds since 1970, UTC."""
    return datetime.now(UTC).timestamp()


class Coordinator:
    """One process's part of a run."""

    def __init__(
        self,
        run: RunContext,
        store: Store,
        events: EventLog,
        open_link: OpenLink,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = unix_now,
    ) -> None:
        self._config = run.config
        self._clock = clock
        self._wall_clock = wall_clock
        self._session_id = secrets.token_hex(8)
        self._claimant = Claimant(run.config.fleet, run.config.run_id, self._session_id)
        self._link = _link(open_link, run.config.fleet, self._session_id, self._claimant)
        self._channel = DeviceChannel(run.config.fleet, self._link, clock, max_devices=run.config.max_devices)
        self._ledger = Ledger(
            store,
            events,
            run_id=run.config.run_id,
            clock=clock,
            wall_clock=wall_clock,
            max_devices=run.config.max_devices,
            axes=run.method.axes,
            asks_once=run.method.asks_once,
        )
        self._asks_once = run.method.asks_once
        self._translator = MessageTranslator(run, self._channel, self._ledger, session_id=self._session_id, clock=clock)
        self._executor = CommandExecutor(run, store, self._ledger, self._channel, self._translator)
        self._pending: collections.deque[Event] = collections.deque()
        self._settled_at = clock()
        self._is_connected = True
        self._leave_at: float | None = None
        """Instant at which a finished run stops waiting for good-byes."""

    def run(self) -> None:
        """Coordinate until the run is finished. See :func:`run_coordinator`."""
        self._link.connect()
        try:
            self._claimant.take(self._wall_clock())
            self._loop(*self._begin())
        finally:
            finished = None if self._leave_at is None else self._finished()
            self._link.close(finished)

    def _begin(self) -> tuple[RunState, tuple[Command, ...]]:
        config, now, finished = self._config, self._clock(), self._ledger.last_finished
        self._ledger.run_started(config.run_id, config.training.num_rounds)
        round_limits = RoundLimits(
            run_id=config.run_id,
            num_rounds=config.training.num_rounds,
            num_devices=config.num_devices,
            round_deadline_s=config.round_deadline_s,
            registration_timeout_s=config.registration_timeout_s,
            rejoin_s=config.rejoin_s,
            asks_once=self._asks_once,
        )
        served = self._ledger.served
        if finished is None:
            return machine.start(round_limits, now, served)
        participants, num_used = self._ledger.resume_round(), self._ledger.num_used_rounds
        state, commands = machine.resume(
            round_limits, now, finished, participants, num_used_rounds=num_used, served=served
        )
        patience.say_at_start(state)
        return state, commands

    def _loop(self, state: RunState, commands: tuple[Command, ...]) -> None:
        self._ledger.hold()
        while True:
            for command in commands:
                self._execute(state, command)
            if self._leave_at is not None and self._may_leave(self._leave_at):
                self._settle()
                return
            event = self._next_event(state)
            if self._leave_at is not None and isinstance(event, DeviceRegistered):
                self._link.publish(*self._finished())
            before = state
            state, commands = machine.advance(before, event)
            self._ledger.save(before, state, self._executor.take_scheduler_state)
            patience.say(event, before, state)

    def _settle(self) -> None:
        """Make all changes durable, then send the messages and event lines about them."""
        self._ledger.settle()
        self._channel.post()
        self._settled_at = self._clock()

    def _execute(self, state: RunState, command: Command) -> None:
        if isinstance(command, Aggregate | Evaluate | FailRun | FinishRun):
            self._settle()  # these commands read the files, or end the process
        if isinstance(command, FailRun):
            is_memory = command.reason is FailureReason.ARM_INFEASIBLE
            failed = DevicesTooSmallError if is_memory else RunFailedError
            refused = f"; {self._link.last_refusal}" if self._link.last_refusal else ""
            msg = f"{command.detail}{refused}"
            raise failed(msg, round_number=state.round_number)
        if isinstance(command, FinishRun):
            self._ledger.run_finished(self._config.run_id)
            self._settle()
            self._link.publish(*self._finished())
            self._leave_at = self._clock() + LINGER_S
            return
        self._pending.extend(self._executor.execute(state, command))

    def _next_event(self, state: RunState) -> Event:
        """The next event. The clock is read only if nothing is pending: a stored update counts before a deadline."""
        while True:
            if self._claimant.check():
                self._channel.to_all(self._translator.hello)  # devices of a coordinator that gave up are now this one's
            if self._clock() - self._settled_at >= GROUP_S:
                self._settle()
            if self._pending:
                return self._pending.popleft()
            if (since_s := self._clock() - state.now) >= TICK_S:
                self._channel.tick()
                is_deaf = not self._is_connected or since_s > STALL_S
                if is_deaf:
                    self._channel.registry.excuse(self._clock())
                self._pending.extend(self._translator.take_silent())
                return Tick(now=self._clock(), is_deaf=is_deaf)
            with contextlib.suppress(queue.Empty):
                self._receive(state, BUSY_TICK_S if self._executor.is_busy else TICK_S)
            self._pending.extend(self._executor.poll())

    def _receive(self, state: RunState, timeout_s: float) -> None:
        try:
            event = self._link.events.get_nowait()
        except queue.Empty:
            self._settle()
            event = self._link.events.get(timeout=timeout_s)
        match event:
            case Connected():
                self._is_connected = True
                self._channel.to_all(self._translator.hello)
                self._channel.reconnected()
            case Disconnected(reason=reason):
                self._is_connected = False
                logger.warning("waiting for the broker to come back (%s)", reason)
            case Received(topic=topic, payload=payload):
                self._pending.extend(self._translator.receive(state, topic, payload))

    def _may_leave(self, leave_at: float) -> bool:
        return self._clock() >= leave_at or not self._channel.registry.has_online

    def _finished(self) -> tuple[str, bytes]:
        message = Finished(run_id=self._config.run_id, detail="all rounds are done")
        return topics.to_all(self._config.fleet, kind_of(message)), encode_message(message)


def mqtt_of(config: CoordinatorConfig) -> OpenLink:
    """Links to the broker that a configuration names.

    Raises:
        AddressError: its URL cannot be used.
    """
    files = (config.broker_ca_file, config.broker_cert_file, config.broker_key_file)
    ca_file, cert_file, key_file = (None if name is None else Path(name) for name in files)
    address = BrokerAddress.parse(config.broker_url).with_password(os.environ.get(PASSWORD_VARIABLE))
    return functools.partial(MqttLink, address, tls=TlsFiles(ca_file=ca_file, cert_file=cert_file, key_file=key_file))


def _link(open_link: OpenLink, fleet: str, session_id: str, claimant: Claimant) -> Link:
    """Make the link under a new client id, so that it disconnects no other client (:mod:`.services.fleets`).

    The id is in no message, unlike the session's, so nobody else can use it to disconnect this client.
    """
    return open_link(
        client_id=f"fedspine-coordinator:{fleet}:{secrets.token_hex(8)}",
        subscriptions=topics.coordinator_subscriptions(fleet),
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        reflex=claimant.reflex,
        rng=random.Random(session_id),  # noqa: S311 - jitter
    )
