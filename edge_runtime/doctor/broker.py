"""Checks of the broker: does it take messages, does a coordinator answer, and can the artifact be fetched?"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_runtime.doctor.findings import Finding, error, ok, refused, skipped, warning
from edge_runtime.doctor.setup import Setup
from edge_runtime.errors import ExitCode, FedSpineError

ANSWER_S: Final = 5.0
"""Longest time for a message to the broker and back, and for a coordinator's answer, seconds."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Trial:
    """Replies of broker and coordinator to a device that sends small and large messages."""

    address: str = ""
    fleet: str = ""
    topic: str = ""
    num_bytes: int = 0
    """Size of the large message."""
    problem: FedSpineError | None = None
    """Reason why the broker refused the connection; None = it did not."""
    refusal: str = ""
    """Reason why the broker refused the message; empty = it reported no refusal."""
    cut: str = ""
    """Reason why the connection ended during the trial; empty = it did not end."""
    has_reasons: bool = False
    """Whether the broker gives reasons for refused messages (MQTT 5)."""
    is_confirmed: bool = False
    came_back: bool = False
    coordinator: str = ""
    """Run of the coordinator that answered; empty = none answered."""
    allowed_digests: str | None = None
    """Digests of artifacts that the device may run, with commas between them; None = any."""
    allowed_hosts: str | None = None
    """Artifact servers that the device may use, with commas between them; None = any."""
    artifact_url: str | None = None
    """URL of the folder of the run's artifact, with a slash at the end."""
    artifact_digest: str | None = None


def try_out(setup: Setup) -> Trial:
    """Connect, publish a message of the largest size, and ask for a coordinator; a running device is not disturbed."""
    from edge_runtime.agent.identity import check_name  # noqa: PLC0415 - see the package's docstring

    trial = Trial(fleet=setup.fleet, allowed_digests=setup.artifact_digests, allowed_hosts=setup.artifact_hosts)
    try:
        device_id = setup.device_id or _stored_id(setup.state) or f"doctor-{secrets.token_hex(4)}"
        check_name(setup.fleet, "fleet")
        check_name(device_id, "device id")
        with _silent_link():
            _talk(setup, device_id, trial)
    except FedSpineError as why:
        trial.problem = why
    return trial


@contextlib.contextmanager
def _silent_link() -> Iterator[None]:
    """Suppress the link's log lines, because the findings have their content."""
    logger = logging.getLogger("edge_runtime.link")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _talk(setup: Setup, device_id: str, trial: Trial) -> None:
    from edge_runtime.bounds import limits  # noqa: PLC0415 - see the package's docstring
    from edge_runtime.link.mqtt import Connected, Disconnected, MqttLink, Received  # noqa: PLC0415 - see above
    from edge_runtime.wire import topics  # noqa: PLC0415 - see the package's docstring
    from edge_runtime.wire.messages import (  # noqa: PLC0415
        Chunk,
        Hello,
        Presence,
        decode_message,
        encode_message,
        kind_of,
    )

    if setup.broker is None:
        return
    address = setup.broker()
    fleet = setup.fleet
    empty = Chunk(digest="0" * 64, index=0, payload=b"")
    # in msgpack the length of a large payload takes 5 bytes, not 2
    room = limits.MAX_MESSAGE_BYTES - len(encode_message(empty)) - 3
    large = encode_message(Chunk(digest="0" * 64, index=0, payload=bytes(room)))
    trial.address, trial.num_bytes = str(address), len(large)
    trial.topic = topics.up(fleet, device_id, kind_of(empty))
    link = MqttLink(
        address,
        client_id=f"fedspine:{fleet}:{device_id}:doctor-{secrets.token_hex(4)}",
        subscriptions=topics.device_subscriptions(fleet, device_id),
        optional_subscriptions=(trial.topic,),
        will=None,
        max_message_bytes=limits.MAX_MESSAGE_BYTES,
        tls=setup.tls,
        rng=random.Random(),  # noqa: S311 - jitter, guards nothing
    )
    link.connect()
    question = Presence(device_id=device_id, session_id=secrets.token_hex(8), online=True, detail="doctor")
    link.publish(topics.up(fleet, device_id, kind_of(question)), encode_message(question))
    link.publish(trial.topic, large)
    until = time.monotonic() + ANSWER_S
    while time.monotonic() < until and not trial.cut and not (trial.came_back and trial.coordinator):
        try:
            event = link.events.get(timeout=0.1)
        except queue.Empty:
            continue
        if isinstance(event, Connected):
            trial.has_reasons = event.protocol == "MQTT 5"
        elif isinstance(event, Disconnected):
            trial.cut = event.reason
        elif isinstance(event, Received) and event.topic == trial.topic:
            trial.came_back = trial.came_back or event.payload == large
        elif isinstance(event, Received) and event.topic.endswith("/hello"):
            try:
                message = decode_message(event.payload)
            except FedSpineError:
                continue  # not a message, so not a coordinator's answer
            if isinstance(message, Hello):
                trial.coordinator = message.run_id
                trial.artifact_url, trial.artifact_digest = message.artifact_url, message.artifact_digest
    trial.refusal = link.last_refusal
    trial.is_confirmed = link.is_all_confirmed
    link.close()


def broker(trial: Trial) -> Finding:
    """Does the broker let this device in, and take a message of the largest size?"""
    if trial.problem is not None:
        return refused("broker", trial.problem)
    if not trial.address:
        return skipped("broker", "--broker")
    size = f"a message of {trial.num_bytes} bytes on {trial.topic}"
    if trial.refusal or trial.cut or not trial.is_confirmed:
        return error("broker", *_not_taken(trial, size), ExitCode.BROKER_REFUSED)
    lets_in = f"{trial.address} lets this device in"
    if trial.came_back:
        return ok("broker", f"{lets_in} and gave {size} back")
    if trial.has_reasons or trial.coordinator:
        return ok("broker", f"{lets_in} and took {size} (this user may not read it back)")
    step = f"let this user write {trial.topic} (ACL), and check the limit of sizes (mosquitto: message_size_limit)"
    return warning("broker", f"{lets_in}, but {size} did not come back", step)


def _not_taken(trial: Trial, size: str) -> tuple[str, str]:
    """Return the fate of a message that the broker did not deliver, and the next step."""
    if trial.refusal:
        step = "let this user write up/<its device id>/# there (ACL), or raise the broker's limit of sizes"
        return trial.refusal, step
    if trial.cut:
        step = "see the broker's log; its ACL, or a limit of sizes (mosquitto: max_packet_size, message_size_limit)"
        return f"{trial.address} ended the connection at {size}: {trial.cut}", step
    return f"{trial.address} did not confirm {size} in {ANSWER_S:g} s", "see the broker's log, and what is between"


def fleet(trial: Trial) -> Finding:
    """Does a coordinator of the fleet answer?"""
    if not trial.address:
        return skipped("fleet", "--broker")
    if trial.coordinator:
        return ok("fleet", f"a coordinator of fleet {trial.fleet!r} answers, of run {trial.coordinator!r}")
    if trial.problem is not None or trial.refusal or trial.cut:
        return warning("fleet", "cannot be checked without the broker", "first fix what is reported of the broker")
    step = "check --fleet, and that 'fedspine coordinate' runs with that fleet; a device waits for it"
    return warning("fleet", f"no coordinator of fleet {trial.fleet!r} answered in {ANSWER_S:g} s", step)


def artifact(trial: Trial) -> Finding:
    """May the artifact of the run be used, can its manifest be fetched from here, and does this release read it?"""
    from edge_runtime.agent.pins import Pins  # noqa: PLC0415 - see the package's docstring

    if not trial.address:
        return skipped("artifact", "--broker")
    if not trial.coordinator:
        return warning("artifact", "cannot be checked without a coordinator", "first fix what is reported of the fleet")
    if trial.artifact_url is None or trial.artifact_digest is None:
        return warning("artifact", "the coordinator does not say where it is", "install the server's release there too")
    pins = Pins.of(trial.allowed_digests, trial.allowed_hosts)
    objection = pins.objection(trial.coordinator, trial.artifact_digest, trial.artifact_url)
    if objection is not None:
        return error("artifact", objection, "", ExitCode.USAGE)
    return _manifest(trial.artifact_url, trial.artifact_digest)


def _manifest(folder_url: str, digest: str) -> Finding:
    from edge_runtime.bounds import limits  # noqa: PLC0415 - see the package's docstring
    from edge_runtime.formats import names  # noqa: PLC0415 - see the package's docstring
    from edge_runtime.formats.manifest import decode_manifest, digest_of  # noqa: PLC0415
    from edge_runtime.link.http import fetch_small  # noqa: PLC0415 - see the package's docstring

    url = f"{folder_url}{names.MANIFEST_FILE}"
    try:
        data = fetch_small(url, limits.MAX_MANIFEST_BYTES, timeout_s=ANSWER_S, max_attempts=1)
        manifest = decode_manifest(data)
    except FedSpineError as why:
        return refused("artifact", why)
    if digest_of(data) != digest:
        step = "let the coordinator and the artifact server use the same run directory"
        detail = f"{url} is not the manifest of the run: its digest is {digest_of(data)[:12]}"
        return error("artifact", detail, step, ExitCode.ARTIFACT_CORRUPTED)
    return ok("artifact", f"{url} is there: {manifest.model_name}, {manifest.task}")


def _stored_id(state: Path | None) -> str | None:
    """The device id in a state directory, None if there is none; nothing is written."""
    from edge_runtime.agent.identity import ID_FILE  # noqa: PLC0415 - see the package's docstring
    from edge_runtime.bounds.fields import NAME  # noqa: PLC0415

    try:
        text = "" if state is None else (state / ID_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return text if NAME.fullmatch(text) else None
