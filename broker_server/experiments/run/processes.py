"""The processes of a run, each a command line of its own, and the order in which they start."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import time
import urllib.parse
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from broker_server.errors import ChildFailedError
from broker_server.experiments.run.emulate import read_fleet
from broker_server.experiments.run.layout import RunDirectory
from broker_server.experiments.run.preparation import HOST, free_port
from broker_server.experiments.run.settings import EMBEDDED_BROKERS, RunSettings
from broker_server.experiments.run.supervisor import Child, Supervisor
from broker_server.methods.by_name import method_of
from broker_server.serving.services.fleets import check_free
from broker_server.serving.storage.events import EventReader, Started
from edge_runtime.errors import ExitCode
from edge_runtime.link.address import PASSWORD_VARIABLE, BrokerAddress, TlsFiles
from edge_runtime.link.visit import visit
from edge_runtime.system.files import PRIVATE_FOLDER
from edge_runtime.system.interpreter import module_command

NUM_HOLDOUT: Final = 32
"""Examples (or windows) that each device holds out; all devices share this machine's cores, so fewer than a board's."""

START_TIMEOUT_S: Final = 30.0
"""Longest wait for a server of this run to listen."""


POLL_S: Final = 0.05
"""Pause between two looks at a process that starts."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The processes that run while devices train."""

    servers: tuple[Child, ...]
    coordinator: Child
    devices: dict[str, Child]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The broker and fleet where devices and coordinator meet."""

    broker_url: str
    fleet: str


def server_command(*arguments: str) -> list[str]:
    """Command line of ``fedspine ...`` in this very installation."""
    return module_command("broker_server", *arguments)


def export_command(settings: RunSettings, source: str, labels: tuple[str, ...], output: Path) -> list[str]:
    """Command line that exports the model."""
    command = server_command("export", source, "--task", settings.task, "-o", str(output), "--seed", str(settings.seed))
    if settings.targets:
        command += ["--targets", settings.targets]
    if settings.top_blocks:
        command += ["--top-blocks", str(settings.top_blocks)]
    if settings.base != "stored":
        command += ["--base", settings.base]
    if settings.new_head:
        command += ["--new-head"]
    for label in labels:
        command += ["--label", label]
    return command


def compact_command(settings: RunSettings, directory: RunDirectory, round_number: int | None) -> list[str]:
    """Command line that makes the compact model; of the last round where no other is given."""
    command = server_command("compact", str(directory.root), "--sparsity", str(settings.sparsity))
    if settings.quantize:
        command += ["--quantize", settings.quantize]
    if round_number is not None:
        command += ["--round", str(round_number)]
    return [*command, "-o", str(directory.compact)]


def device_command(
    settings: RunSettings, directory: RunDirectory, device_id: str, place: Place, memory_mb: int
) -> list[str]:
    """Command line of one device, as a person would type it on a board; ``memory_mb`` 0 = its own choice."""
    command = module_command("edge_runtime", "start", "--broker", place.broker_url, "--fleet", place.fleet)
    command += ["--device-id", device_id, "--data", str(directory.device_data(device_id))]
    command += ["--state", str(directory.devices / device_id), "--threads", str(device_threads(settings))]
    method = method_of(settings.method)
    if method.sends_examples:
        command.append("--send-activations")
    if memory_mb:
        command += ["--memory-limit", f"{memory_mb}MiB"]
    command += ["--nice", "0"]  # servers and devices have the same priority on this machine
    if method.device_class:
        command += ["--device-method", f"{method.device_method}={method.device_class}"]
    if settings.is_emulated:
        command += ["--mode", "fused", "--checkpoint-every", "0"]  # modelled time is for this mode, without checkpoints
    return [*command, "--holdout", str(NUM_HOLDOUT), "--exit-when-finished"]


def device_threads(settings: RunSettings) -> int:
    """Threads of each device."""
    return settings.threads or max(1, num_cores() // settings.num_devices)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def take_password(settings: RunSettings, environment: MutableMapping[str, str]) -> RunSettings:
    """Move a password out of the broker's URL into the environment, so that no file and no process list shows it.

    Raises:
        AddressError: the URL is malformed.
    """
    if settings.broker in EMBEDDED_BROKERS:
        return settings
    address = BrokerAddress.parse(settings.broker)
    if address.password is None:
        return settings
    environment[PASSWORD_VARIABLE] = address.password
    parts = urllib.parse.urlsplit(settings.broker)
    user, _, place = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}@{place}"
    return dataclasses.replace(settings, broker=urllib.parse.urlunsplit(parts._replace(netloc=netloc)))


def check_broker(url: str, fleet_name: str) -> None:
    """Connect to somebody else's broker once, so that a wrong URL or a fleet in use is known before the work begins.

    Args:
        url: the broker.
        fleet_name: the fleet that was asked for; empty = one that no other run has.

    Raises:
        BrokerUnreachableError: nobody answers.
        BrokerRefusedError: it says no.
        AddressError: the URL is malformed.
        FleetInUseError: the fleet has a coordinator.
    """
    address = BrokerAddress.parse(url).with_password(os.environ.get(PASSWORD_VARIABLE))
    rng = random.Random()  # noqa: S311 - jitter
    if fleet_name:
        check_free(address, TlsFiles(), fleet_name, rng)
    else:
        with visit(address, TlsFiles(), rng):
            pass  # the broker answers


def start_servers(
    supervisor: Supervisor, settings: RunSettings, directory: RunDirectory
) -> tuple[tuple[Child, ...], str, str]:
    """Start the broker (unless there is one) and the artifact server, and wait until they listen.

    Returns:
        Their processes, the broker's URL, and the base URL of ``artifacts/``.

    Raises:
        ChildFailedError: one ended, or does not listen.
    """
    servers = []
    broker_url = settings.broker
    if settings.broker in EMBEDDED_BROKERS:
        port = settings.broker_port or free_port()
        arguments = ("broker", "--host", HOST, "--port", str(port), "--kind", settings.broker)
        servers.append(supervisor.start("broker", server_command(*arguments)))
        _wait_for_port(servers[-1], port)
        broker_url = f"mqtt://{HOST}:{port}"
    port = settings.artifact_port or free_port()
    command = server_command("artifacts", str(directory.artifacts), "--host", HOST, "--port", str(port))
    servers.append(supervisor.start("artifacts", command))
    _wait_for_port(servers[-1], port)
    return tuple(servers), broker_url, f"http://{HOST}:{port}/"


def start_fleet(
    supervisor: Supervisor,
    settings: RunSettings,
    directory: RunDirectory,
    servers: tuple[Child, ...],
    place: Place,
) -> Fleet:
    """Start the coordinator, whose ``config.toml`` is written, and all devices.

    On a broker that others use too they wait until the fleet is this coordinator's: devices of the same names in the
    fleet of another would throw that one's devices out.

    Raises:
        ChildFailedError: the coordinator ended, such as for a fleet that another one has.
    """
    events = EventReader(directory.events_file, from_end=True)
    coordinator = supervisor.start("coordinator", server_command("coordinate", str(directory.root)))
    while settings.broker not in EMBEDDED_BROKERS and not any(isinstance(e, Started) for e in events.new_events()):
        if coordinator.returncode is not None:
            raise coordinator.failure()
        time.sleep(POLL_S)
    devices = {}
    emulated = read_fleet(settings, directory)
    for device_id in settings.device_ids:
        (directory.devices / device_id).mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        cap_mb = emulated.class_of(device_id).memory_mb if emulated is not None else 0
        memory_mb = min(filter(None, (cap_mb, settings.device_memory_mb)), default=0)
        command = device_command(settings, directory, device_id, place, memory_mb)
        devices[device_id] = supervisor.start(device_id, command)
    return Fleet(servers=servers, coordinator=coordinator, devices=devices)


def _wait_for_port(child: Child, port: int) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if child.returncode is not None:
            raise child.failure()
        try:
            with socket.create_connection((HOST, port), timeout=1.0):
                return
        except OSError:
            time.sleep(POLL_S)
    msg = f"{child.name} does not listen on port {port} after {START_TIMEOUT_S:.0f} s"
    raise ChildFailedError(msg, ExitCode.RUN_FAILED, child.log)
