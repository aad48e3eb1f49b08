"""Make an agent from the owner's settings: the part of ``fedspine-edge start`` before its loop.

This module touches no signals, no priority and no environment. So many agents can run in one process, each in its own
thread. Measurements of the process (its resident set) then cover all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.capabilities import find_capabilities
from edge_runtime.agent.coordinator_channel import CoordinatorChannel
from edge_runtime.agent.identity import StateDirectory, check_name
from edge_runtime.agent.precheck import look_at_examples
from edge_runtime.agent.settings import AgentSettings
from edge_runtime.board.sensors import Sensors

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_agent(settings: AgentSettings, path: Path, device_id: str | None = None) -> Iterator[Agent]:
    """An agent whose state directory is locked until the block ends; call :meth:`Agent.run` within it.

    Args:
        settings: the owner's settings.
        path: state directory, made if need be.
        device_id: name of the device; None = the one used before, or a new one.

    Raises:
        BadNameError: device id or fleet is not allowed.
        NoSensorError: a limit needs a sensor that this board does not have.
        DataInvalidError: the examples cannot be read; names file and line.
        DataEmptyError: there are no examples.
        StateInUseError: another agent holds the state directory.
        StateError: the state directory cannot be written.
        DiskFullError: there is no space.
        AddressError: a TLS file cannot be used.
    """
    work = settings.work
    check_name(settings.fleet, "fleet")
    work.pausing.check(Sensors(work.sensors).read())
    examples = look_at_examples(work.data)
    for warning in examples.warnings:
        logger.warning("%s", warning)
    with StateDirectory(path, device_id) as state:
        logger.info("device %s, %d examples", state.device_id, examples.num_examples)
        kept = dataclasses.replace(settings, work=dataclasses.replace(work, methods=state.methods))
        capabilities = find_capabilities(state.capabilities_file, work.num_threads, work.memory_limit_bytes)
        rng = random.Random()  # noqa: S311 - jitter, guards nothing
        channel = CoordinatorChannel(settings.open_link, settings.fleet, state.device_id, capabilities, examples, rng)
        yield Agent(kept, state, channel, rng)
