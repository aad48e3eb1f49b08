"""The device process: one loop that reads the link, keeps the background thread busy, and reports its state.

Everything that arrives may be lost, repeated or late; each has a decided answer (docs/wire.md). Work runs in the
background thread; all decisions are taken here, in one thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
from typing import Final

from edge_runtime.agent.assignment_runner import AssignmentRunner
from edge_runtime.agent.attempts import Attempts
from edge_runtime.agent.checkpoints import Checkpoints
from edge_runtime.agent.coordinator_channel import COORDINATOR, CoordinatorChannel
from edge_runtime.agent.errors import StoppedError
from edge_runtime.agent.identity import StateDirectory
from edge_runtime.agent.jobs import Jobs, Rebuilt
from edge_runtime.agent.methods.installed import InstalledMethods
from edge_runtime.agent.outbox import Outbox
from edge_runtime.agent.refusals import is_final, largest_delay_s, reason_of, too_large
from edge_runtime.agent.refused import Refused
from edge_runtime.agent.reporter import Reporter
from edge_runtime.agent.settings import AgentSettings
from edge_runtime.agent.traffic import Traffic
from edge_runtime.agent.uploads import Uploads
from edge_runtime.agent.work import CurrentWork, Work
from edge_runtime.errors import ExitCode, FedSpineError, MessageError
from edge_runtime.link.inbox import Connected, Disconnected, LinkEvent
from edge_runtime.link.transfers import Transfers
from edge_runtime.wire.messages import (
    AnyMessage,
    Assignment,
    Cancel,
    Chunk,
    ChunkRequest,
    DeviceState,
    FailureReason,
    Finished,
    Hello,
    Update,
    Verdict,
    Welcome,
    decode_message,
    device_of,
    kind_of,
)

logger = logging.getLogger(__name__)

POLL_S: Final = 0.1
"""Time that the loop waits for the link before it looks at the background thread, seconds."""

STOP_S: Final = 10.0
"""Time that a stopping process waits for its background thread, seconds."""


class Agent:
    """One device. Call :meth:`run` once; :meth:`stop` may be called from a signal handler."""

    def __init__(
        self, settings: AgentSettings, state: StateDirectory, channel: CoordinatorChannel, rng: random.Random
    ) -> None:
        self._settings = settings
        self._device_id = state.device_id
        self._channel = channel
        self._link = channel.link
        self._clock = channel.clock
        self._reporter = Reporter(state.device_id, channel.session_id, channel.say, self._clock)
        self._transfers = Transfers(lambda _, message: channel.say(message), self._clock)
        self._uploads = Uploads(Outbox(state.outbox), self._transfers, channel.say, channel.new_repeat)
        traffic = Traffic(lambda: (self._link.bytes_sent, self._link.bytes_received))
        self._checkpoints = Checkpoints(state.checkpoint, settings.work.checkpoint_every)
        self._jobs = Jobs(state.artifacts, settings.work, traffic, self._checkpoints)
        self._welcome: Welcome | None = None
        self._runner: AssignmentRunner | None = None
        self._attempts = Attempts(rng, self._clock)
        self._refused = Refused(settings.pins, InstalledMethods(settings.work.device_methods))
        self._current = CurrentWork(channel, self._transfers, self._jobs, self._reporter, self._refused)
        self._exit: tuple[ExitCode, str] | None = None

    def stop(self, code: ExitCode, detail: str) -> None:
        """End :meth:`run` soon, with a good-bye that says ``detail``."""
        if self._exit is None:
            self._exit = (code, detail)

    def run(self) -> ExitCode:
        """Take part until stopped.

        Raises:
            BrokerUnreachableError: nobody answers at the first connection (not with ``wait_for_broker``).
            BrokerRefusedError: the broker refuses the first connection.
            FedSpineError: this device cannot take part in any run until its owner removes the cause; the coordinator
                was told. Faults of messages, artifacts and the network do not end a device.
        """
        farewell = "stopped by an unexpected error"
        try:
            self._link.connect(wait_for_broker=self._settings.wait_for_broker)
            while self._exit is None:
                self._turn()
            code, farewell = self._exit
        except FedSpineError as error:
            farewell = str(error)
            raise
        finally:
            self._jobs.stop()
            if not self._jobs.join(STOP_S):
                logger.warning("work did not stop within %g s; the process ends all the same", STOP_S)
            self._link.close(self._channel.goodbye(farewell))
        return code

    def _turn(self) -> None:
        """One turn of the loop: read messages, collect finished jobs, start jobs and send messages that are due."""
        with contextlib.suppress(queue.Empty):
            self._on_link(self._link.events.get(timeout=POLL_S))
        self._collect()
        self._channel.register_if_due()
        self._current.check_deadline()
        if not self._jobs.is_busy:
            self._start_job()
        self._transfers.tick()
        if self._channel.is_registered:
            self._uploads.tick()
            self._reporter.tick()

    # ---- incoming messages and events --------------------------------------------------------------------------------

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._channel.register_again()
                self._transfers.ask_again()
            case Disconnected():
                self._channel.is_registered = False
            case _:
                try:
                    self._on_message(decode_message(event.payload))
                except MessageError as error:
                    logger.warning("on %r: %s", event.topic, error)
                except Exception:  # no message may end a device
                    logger.exception("a message on %r could not be handled; it is ignored", event.topic)

    def _on_message(self, message: AnyMessage) -> None:
        if device_of(message, self._device_id) != self._device_id:
            logger.warning("a %s for another device arrived here; ignored", kind_of(message))
            return
        match message:
            case Hello():
                self._channel.register_again()
            case Welcome():
                self._on_welcome(message)
            case Assignment():
                self._on_assignment(message)
            case Verdict():
                self._on_verdict(message)
            case Cancel():
                self._on_cancel(message)
            case Finished():
                self._on_finished(message)
            case Chunk():
                self._transfers.handle(COORDINATOR, message)
            case ChunkRequest():
                self._transfers.handle(COORDINATOR, message)
                self._uploads.heard(message.digest)
            case _:
                logger.warning("a %s is not for devices; ignored", kind_of(message))

    def _on_welcome(self, welcome: Welcome) -> None:
        self._channel.is_registered = True
        self._reporter.heartbeat_s = max(1.0, welcome.heartbeat_s)
        if (objection := self._refused.judge(welcome)) is not None:
            self._on_unwanted(welcome, objection)
            return
        previous, self._welcome = self._welcome, welcome
        if previous is not None and previous.run_id != welcome.run_id:
            self._current.drop(f"run {welcome.run_id} began")
            if self._runner is not None:
                self._reporter.change(DeviceState.IDLE)
            elif self._reporter.state is not DeviceState.FETCHING:  # an assignment ended before the runner was ready
                self._reporter.change(DeviceState.FETCHING)
        if previous is not None and previous.artifact_digest != welcome.artifact_digest:
            self._current.drop("the run has another artifact now")
            self._jobs.stop()
            self._runner = None
        if previous != welcome:
            self._attempts.begin_anew()
        self._attempts.news()
        self._uploads.open(welcome.run_id)
        self._uploads.restart()
        self._reporter.say()

    def _on_unwanted(self, welcome: Welcome, objection: str) -> None:
        """Take no part in a run that the owner of this board does not allow; a run under way goes on."""
        if self._welcome is not None and self._welcome.run_id == welcome.run_id:
            self._current.drop(objection)
            self._welcome = self._runner = None
            self._jobs.stop()
        if self._welcome is None:
            self._reporter.change(DeviceState.IDLE, detail=objection)
        else:
            self._reporter.say(objection)

    def _on_assignment(self, assignment: Assignment) -> None:
        if (objection := self._refused.objection_to(assignment.key.run_id)) is not None:
            self._channel.say(self._channel.failure(assignment, FailureReason.INTERNAL, objection))
            return
        if self._welcome is None or assignment.key.run_id != self._welcome.run_id:
            logger.info("assignment of run %s, which did not welcome this device; registering", assignment.key.run_id)
            self._channel.register_again()
            return
        now = self._clock()
        work = Work(assignment, now, now + assignment.deadline_s)
        if self._uploads.has(work.key):
            return
        if (refusal := self._refused.answer_to(work.key)) is not None:
            self._channel.say(refusal)
            return
        if self._current.work is not None:
            if work.key == self._current.work.key:
                self._current.work.deadline_at = work.deadline_at
            # both keys are of this run, because a welcome to another run drops the work
            if work.key <= self._current.work.key:
                self._reporter.say()
                return
            self._current.drop(f"superseded by round {work.key.round_number}, attempt {work.key.attempt}")
        self._attempts.news()
        if (detail := too_large(assignment, self._settings.work.memory_limit_bytes)) is None:
            self._current.begin(work)
        else:
            self._current.refuse(work, FailureReason.ARM_INFEASIBLE, detail)

    def _on_verdict(self, verdict: Verdict) -> None:
        if self._welcome is None or verdict.key.run_id != self._welcome.run_id:
            return  # an update of another run waits for a verdict of that run
        if self._uploads.close(verdict.key) is None:
            return
        word = "accepted" if verdict.accepted else "rejected"
        logger.info("round %d: %s%s", verdict.key.round_number, word, f" ({verdict.detail})" if verdict.detail else "")
        if self._current.work is None and self._uploads.pending is None:
            self._reporter.change(DeviceState.IDLE)

    def _on_cancel(self, cancel: Cancel) -> None:
        key = cancel.key
        if self._welcome is None or key.run_id != self._welcome.run_id:
            return  # see _on_verdict
        if is_current := self._current.work is not None and self._current.work.key == key:
            self._current.drop(f"cancelled: {cancel.detail}")
        if (self._uploads.close(key) is not None or is_current) and self._current.work is None:
            self._reporter.change(DeviceState.IDLE, detail=f"round {key.round_number} cancelled: {cancel.detail}")

    def _on_finished(self, finished: Finished) -> None:
        is_refused = self._welcome is None and self._refused.objection_to(finished.run_id) is not None
        if not is_refused and (self._welcome is None or finished.run_id != self._welcome.run_id):
            return
        logger.info("run %s is over%s", finished.run_id, f": {finished.detail}" if finished.detail else "")
        self._current.drop("the run is over")
        self._reporter.change(DeviceState.DONE)
        if self._settings.exit_when_finished:
            self.stop(ExitCode.OK, "the run is over")

    # ---- jobs of the background thread -------------------------------------------------------------------------------

    def _start_job(self) -> None:
        welcome, work = self._welcome, self._current.work
        if welcome is None:
            return
        if self._runner is None:
            if self._attempts.is_due:
                if work is None:
                    self._reporter.change(DeviceState.FETCHING)
                self._jobs.prepare(welcome, self._reporter.progress)
        elif work is not None and work.is_to_rebuild:
            work.is_running = True
            self._jobs.rebuild(self._runner, work.assignment, self._current.pull_rate, welcome, self._reporter.progress)
        elif work is not None and work.payload is not None:
            work.is_running = True
            self._reporter.change(DeviceState.TRAINING, work.key, num_steps=work.assignment.work.num_counted_steps)
            payload, work.payload = work.payload, None  # only the job holds it, so that its memory is freed early
            rate = self._current.pull_rate
            self._jobs.work(self._runner, work.assignment, payload, rate, welcome, self._reporter.progress)

    def _collect(self) -> None:
        """Take the results of the background thread."""
        if (ended := self._jobs.poll()) is None:
            return
        tag, outcome, work = ended.tag, ended.outcome, self._current.work
        if isinstance(outcome, AssignmentRunner):
            self._on_prepared(outcome)
        elif isinstance(tag, Welcome) and isinstance(outcome, BaseException):
            self._on_prepare_failed(tag, outcome)
        elif work is None or work.key != tag:
            logger.debug("work on %s ended, which nobody waits for any more", tag)
        elif isinstance(outcome, BaseException):
            if not isinstance(outcome, FedSpineError):
                logger.error("work failed unexpectedly", exc_info=outcome)
            self._current.refuse(work, reason_of(outcome), str(outcome) or type(outcome).__name__)
        elif isinstance(outcome, Rebuilt):
            self._current.rebuilt(work, outcome)
        else:
            self._on_worked(work, *outcome)

    def _on_prepared(self, runner: AssignmentRunner) -> None:
        if self._welcome is None or runner.digest != self._welcome.artifact_digest:
            return
        self._runner = runner
        self._attempts.begin_anew()
        logger.info("ready: artifact %s (%s)", runner.digest[:12], runner.artifact.manifest.model_name)
        if self._current.work is None and self._reporter.state is DeviceState.FETCHING:
            self._reporter.change(DeviceState.IDLE)

    def _on_prepare_failed(self, welcome: Welcome, error: BaseException) -> None:
        if welcome != self._welcome:
            return
        if is_final(error):
            raise error
        if isinstance(error, StoppedError):  # it was stopped for another artifact, and now this one is wanted again
            return
        detail = str(error) or type(error).__name__
        if not isinstance(error, FedSpineError):
            logger.error("getting ready failed unexpectedly", exc_info=error)
        delay_s = self._attempts.failed(largest_delay_s(error))
        logger.warning("%s; trying again in %.0f s, or when the coordinator says something new", detail, delay_s)
        if self._current.work is not None:
            self._current.refuse(self._current.work, reason_of(error), detail)
        else:
            self._reporter.change(DeviceState.FETCHING, detail=detail)

    def _on_worked(self, work: Work, update: Update, blob: bytes) -> None:
        self._current.work = None
        try:
            self._uploads.add(update, blob)
        except (FedSpineError, OSError) as error:
            self._current.refuse(work, reason_of(error), str(error))
            return
        self._checkpoints.remove()
        self._reporter.change(DeviceState.UPLOADING, work.key)
