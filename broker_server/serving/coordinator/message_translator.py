"""Turns messages of devices into events of the state machine; pulls, checks and stores updates on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from broker_server.errors import AggregationError
from broker_server.methods.rounds.machine import open_participant
from broker_server.methods.rounds.types import (
    DeviceFailed,
    DeviceHeard,
    DeviceOffline,
    DeviceRegistered,
    Event,
    RunState,
    UpdateAnnounced,
    UpdateLate,
    UpdateRejected,
    UpdateStored,
)
from broker_server.serving.coordinator.claims import most_examples
from broker_server.serving.coordinator.device_channel import DeviceChannel, DeviceMessage, Other
from broker_server.serving.coordinator.ledger import Ledger
from broker_server.serving.coordinator.run_context import RunContext
from edge_runtime.errors import TensorError, WireError
from edge_runtime.link.complaints import Complaints
from edge_runtime.wire import chunks
from edge_runtime.wire.messages import (
    AssignmentKey,
    BlobRef,
    DeviceState,
    Failure,
    FailureReason,
    Hello,
    Presence,
    Register,
    Status,
    Update,
    Verdict,
    Welcome,
)
from edge_runtime.wire.replies import RefusedReply

logger = logging.getLogger(__name__)

FAILURE_INTERVAL_S: Final = 1.0
"""Shortest interval of log lines about failures of one device, seconds."""
MAX_DETAIL: Final = 500
"""Most characters of an error that is sent to a device."""


class MessageTranslator:
    """Translates messages in the thread of the event loop."""

    def __init__(
        self,
        run: RunContext,
        channel: DeviceChannel,
        ledger: Ledger,
        *,
        session_id: str,
        clock: Callable[[], float],
    ) -> None:
        config = run.config
        self._config = config
        self._run = run
        self._channel = channel
        self._assigner = run.assigner
        self._ledger = ledger
        self._artifact_url = f"{config.artifact_url.rstrip('/')}/{config.artifact_digest}/"
        self.hello = Hello(
            run_id=config.run_id,
            session_id=session_id,
            artifact_url=self._artifact_url,
            artifact_digest=config.artifact_digest,
        )
        self._clock = clock
        self._earlier_sessions = ledger.load_sessions()
        self._most_examples: dict[str, int] = {}
        self._failures = Complaints(logger, FAILURE_INTERVAL_S)
        self._announced: dict[str, Update] = {}
        self._pulling: dict[str, Update] = {}
        self._arrived: list[tuple[Update, bytes | str]] = []

    def receive(self, state: RunState, topic: str, payload: bytes) -> list[Event]:
        """Return the events of a payload; none if it was refused."""
        opened = self._channel.open(topic, payload)
        if opened is None:
            return []
        device_id, message = opened
        # a device that is not registered, or asks for a coordinator
        if message is Other.STRANGER or (isinstance(message, Presence) and message.online):
            self._channel.to(device_id, self.hello)
            return []
        if isinstance(message, Register):
            return self._register(message)
        if isinstance(message, Presence):
            return self._leave(message)
        is_online = self._channel.registry.heard(device_id, self._clock())
        if not is_online:
            self._channel.to(device_id, self.hello)
        life = self._sign_of_life(state, device_id) if is_online else []
        if isinstance(message, Other):
            return [*life, *self._take_arrived(state)]
        return [*life, *self._work(state, message)]

    @staticmethod
    def _sign_of_life(state: RunState, device_id: str) -> list[Event]:
        """Return the events that any message of a device causes, because it shows that the device is there."""
        if device_id not in state.online:
            return [DeviceRegistered(device_id=device_id)]  # it was silent for so long that it counted as offline
        participant = state.participants.get(device_id)
        if participant is None or participant.silent_since is None:
            return []
        return [DeviceHeard(device_id=device_id)]

    def most_examples(self, device_id: str) -> int | None:
        """The largest number of examples that a device's update may have; None = the device is not registered."""
        return self._most_examples.get(device_id)

    def take_silent(self) -> list[Event]:
        """Return events for the devices that just became silent for too long."""
        detail = "sent no heartbeat"
        silent = self._channel.registry.take_silent(self._clock())
        for device_id in silent:
            self._ledger.device_seen(device_id, DeviceState.OFFLINE, detail)
        return [DeviceOffline(device_id=device_id, detail=detail) for device_id in silent]

    def pull(self, state: RunState, key: AssignmentKey) -> list[Event]:
        """Pull the update announced under ``key``, unless it is refused by its size; decide on a complete update."""
        announced, participant = self._announced.get(key.device_id), open_participant(state, key)
        if announced is None or announced.key != key or participant is None:
            return []
        update = _with_header(announced)
        if update.blob is None:
            return [UpdateRejected(key=key, detail="the update brings nothing, and this work is answered with a blob")]
        if self._pulling.get(key.device_id) == update and self._channel.is_pulling(update.blob, key.device_id):
            return []  # announced again while its blob is on its way
        if (refusal := self._refusal(key, update.blob)) is not None:
            return [refusal]
        before = self._pulling.get(key.device_id)
        if before is not None and before.blob is not None and before.blob.digest != update.blob.digest:
            self._channel.stop_pulling(before.blob, key.device_id)
        if announced.inline:
            return [self._decide(state, update, announced.inline)]
        self._pulling[key.device_id] = update
        self._channel.pull(
            update.blob,
            key.device_id,
            lambda blob: self._arrived.append((update, blob)),
            lambda why: self._arrived.append((update, why)),
        )
        return []

    def _refusal(self, key: AssignmentKey, blob: BlobRef) -> Event | None:
        """Refuse a blob by its size if it is too large, or too late on the virtual clock; None = it may be pulled."""
        try:
            self._assigner.check_size(blob, key)
        except WireError as error:
            return UpdateRejected(key=key, detail=str(error))
        emulated_s = self._run.emulated_s(key, blob.size_bytes)
        if emulated_s is None or emulated_s <= self._run.deadline_s:
            return None
        self._ledger.late(key, emulated_s)
        detail = f"{emulated_s:.1f} s on the virtual clock, but the deadline is {self._run.deadline_s:g} s (emulated)"
        return UpdateLate(key=key, detail=detail)

    def forget(self, key: AssignmentKey) -> None:
        """Stop pulling an update that no longer counts."""
        announced = self._announced.get(key.device_id)
        if announced is not None and announced.key == key:
            del self._announced[key.device_id]
        update = self._pulling.get(key.device_id)
        if update is not None and update.blob is not None and update.key == key:
            self._channel.stop_pulling(update.blob, key.device_id)
            del self._pulling[key.device_id]

    def _register(self, message: Register) -> list[Event]:
        config, now = self._config, self._clock()
        if not self._channel.registry.register(message.device_id, message.session_id, now):
            full = f"it is not registered: {config.max_devices} devices are there, and max_devices allows no more"
            self._channel.complaints.say(f"device {message.device_id}", now, full)
            return []
        self._look_for_a_second(message)
        self._ledger.device_registered(message)
        task, max_length = self._run.manifest.task, config.training.max_length
        self._most_examples[message.device_id] = most_examples(message, task, max_length)
        if len(self._most_examples) > 2 * config.max_devices:
            known = self._channel.registry.knows
            self._most_examples = {name: most for name, most in self._most_examples.items() if known(name)}
        welcome = Welcome(
            run_id=config.run_id,
            device_id=message.device_id,
            artifact_url=self._artifact_url,
            artifact_digest=config.artifact_digest,
            arms=config.arms,
            batch_size=config.training.batch_size,
            max_length=config.training.max_length,
            work=self._run.method.work_type,
            device_method=self._run.method.device_method or None,
            wire_dtype=config.wire_dtype,
        )
        self._channel.to(message.device_id, welcome)
        has_stayed = self._earlier_sessions.get(message.device_id) == message.session_id
        return [DeviceRegistered(device_id=message.device_id, has_stayed=has_stayed)]

    def _leave(self, message: Presence) -> list[Event]:
        if not self._channel.registry.leave(message.device_id, message.session_id):
            return []
        detail = message.detail or "went offline"
        self._ledger.device_seen(message.device_id, DeviceState.OFFLINE, detail)
        return [DeviceOffline(device_id=message.device_id, detail=detail)]

    def _look_for_a_second(self, message: Register | Status) -> None:
        """Log a warning if two machines use one device id."""
        now = self._clock()
        if self._channel.registry.is_shared(message.device_id, message.session_id, now):
            shared = "two machines use this name: give one of them another --device-id, and its own --state"
            self._channel.complaints.say(f"device {message.device_id}", now, shared)

    def _work(self, state: RunState, message: DeviceMessage) -> list[Event]:
        if isinstance(message, Status):
            self._look_for_a_second(message)
            self._ledger.status_seen(message)
            participant = state.participants.get(message.device_id)
            if message.state is DeviceState.IDLE and participant is not None and participant.is_open:
                # Its assignment was lost on the way. A device that registers gets its open assignment again.
                return [DeviceRegistered(device_id=message.device_id)]
        elif isinstance(message, RefusedReply):
            return self._refused(message)
        elif isinstance(message, Failure) and message.key.run_id == self._config.run_id:
            self._failures.say(f"device {message.key.device_id}", self._clock(), f"{message.reason}: {message.detail}")
            return [DeviceFailed(key=message.key, reason=message.reason, detail=message.detail)]
        elif isinstance(message, Update):
            return self._announce(state, message)
        return []

    def _announce(self, state: RunState, update: Update) -> list[Event]:
        key = update.key
        if key.run_id != self._config.run_id:
            detail = f"update is of run {key.run_id!r}, but this is run {self._config.run_id!r}"
            self._channel.to(key.device_id, Verdict(key=key, accepted=False, detail=detail))
            return []
        if open_participant(state, key) is not None:
            self._announced[key.device_id] = update
        return [UpdateAnnounced(key=key)]

    def _refused(self, reply: RefusedReply) -> list[Event]:
        """Return the events of a malformed reply: its assignment fails, so that the round does not wait for it."""
        if reply.key.run_id != self._config.run_id:
            return []
        key = reply.key
        if reply.kind == "failure":
            return [DeviceFailed(key=key, reason=FailureReason.INTERNAL, detail=reply.why)]
        reason = FailureReason.DIVERGED if reply.has_diverged else None
        return [UpdateRejected(key=key, detail=reply.why, reason=reason)]

    def _take_arrived(self, state: RunState) -> list[Event]:
        arrived, self._arrived = self._arrived, []
        return [self._decide(state, update, content) for update, content in arrived]

    def _decide(self, state: RunState, update: Update, content: bytes | str) -> Event:
        """Store an update that is complete and valid: its row is on disk before the verdict is sent."""
        key = update.key
        participant = open_participant(state, key)
        if participant is None:
            return UpdateAnnounced(key=key)  # the assignment is closed by now; the state machine answers the device
        if isinstance(content, str):
            return UpdateRejected(key=key, detail=content)
        try:
            self._assigner.check_update(content, key, update.num_examples)
            weighed = self._weighed(update)
            if weighed is not update and not self._run.method.is_averaged(self._assigner.assigned(key).work):
                msg = f"sums over {update.num_examples} examples, but its device registered {weighed.num_examples}"
                raise TensorError(msg)
        except WireError as error:
            return UpdateRejected(key=key, detail=str(error)[:MAX_DETAIL])
        except AggregationError as error:
            return UpdateRejected(key=key, detail=str(error)[:MAX_DETAIL], reason=FailureReason.DIVERGED)
        self._ledger.accept_update(weighed, content)
        return UpdateStored(key=key)

    def _weighed(self, update: Update) -> Update:
        """The update, with at most the number of examples that its device had registered with the assignment."""
        key = update.key
        work = self._assigner.work(key)
        known = None if work is None else work.most_examples
        most = self.most_examples(key.device_id) if known is None else known
        if most is None or update.num_examples <= most:
            return update
        said, device_id = update.num_examples, key.device_id
        logger.warning("device %s says %d examples, but registered %d: it counts with these", device_id, said, most)
        return msgspec.structs.replace(update, num_examples=most)


def _with_header(update: Update) -> Update:
    """Return an update in its stored form, with the header of its blob."""
    if not update.inline:
        return update
    return msgspec.structs.replace(update, blob=chunks.describe(update.inline), inline=b"")
