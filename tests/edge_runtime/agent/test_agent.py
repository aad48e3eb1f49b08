"""A real device, in a thread, on a real broker, with a real artifact; the coordinator follows the test's script."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from edge_runtime.bounds import limits
from edge_runtime.errors import ExitCode
from edge_runtime.formats.adapter import AdapterLayout, initial
from edge_runtime.formats.tensors import decode_tensors
from edge_runtime.link.mqtt import BrokerAddress, MqttLink, Received
from edge_runtime.wire.messages import DeviceState, Finished, Presence, Register, Status, Update, encode_message
from edge_runtime.wire.topics import to_all
from edge_runtime.wire.work import Arm
from tests.edge_runtime.agent.stage import ARM, DEVICE, FLEET, RUN, Coordinator, StartDevice
from tests.replies import blob_of, lora_of, loss_of


def finish(coordinator: Coordinator) -> None:
    coordinator.link.publish(to_all(FLEET, "finished"), encode_message(Finished(run_id=RUN)))


def test_a_round_from_registration_to_verdict(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    assert coordinator.wait(Register).num_examples == 24
    coordinator.welcome()
    assignment = coordinator.assign()
    states: list[DeviceState] = []
    while not states or states[-1] != DeviceState.TRAINING:
        states.append(coordinator.wait(Status).state)
    update = coordinator.wait(Update)
    manifest = coordinator.artifact.manifest
    layout = AdapterLayout.of(manifest, lora_of(assignment).plan.open(manifest), ARM.rank)
    trained = decode_tensors(coordinator.pull(update))
    layout.check(trained)
    assert trained["classifier.weight"].any()
    coordinator.verdict(update)
    coordinator.wait(Status, state=DeviceState.IDLE)
    assert (update.key.round_number, update.key.attempt, update.num_examples) == (1, 1, 20)


def test_measurements_are_measured(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign()
    update = coordinator.wait(Update)
    measured = update.measurements
    assert 0 < measured.step_s_p50 <= measured.step_s_p95 <= measured.train_s
    assert measured.fetch_s > 0
    assert measured.prepare_s > 0
    assert measured.evaluate_s > 0
    assert measured.peak_rss_bytes > 10_000_000
    assert measured.bytes_up >= blob_of(update).size_bytes
    on_device = [ref.size_bytes for ref in coordinator.artifact.manifest.files.values() if ref.on_device]
    assert measured.bytes_down >= sum(on_device)
    assert update.evaluation is not None
    assert update.evaluation.num_targets == 4
    assert np.isfinite(loss_of(update))


def test_more_steps_learn_more(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 40})
    update = coordinator.wait(Update)
    assert update.evaluation is not None
    assert update.evaluation.loss_after < 0.9 * update.evaluation.loss_before


def test_a_second_round_costs_no_second_download(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    for number in (1, 2):
        coordinator.assign(number)
        update = coordinator.wait(Update, round_number=number)
        coordinator.pull(update)
        coordinator.verdict(update)
        coordinator.wait(Status, state=DeviceState.IDLE)
    assert update.measurements.bytes_down < 100_000
    assert update.measurements.bytes_up < 3 * blob_of(update).size_bytes + 5_000


def test_a_hello_is_answered_with_a_registration(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    first = coordinator.wait(Register)
    coordinator.welcome()
    coordinator.wait(Status, state=DeviceState.FETCHING)
    coordinator.wait(Status, state=DeviceState.IDLE)
    coordinator.hello()
    assert coordinator.wait(Register) == first


def test_a_registration_is_repeated_until_answered(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    assert coordinator.wait(Register) == coordinator.wait(Register)


def test_an_unanswered_update_survives_the_process(coordinator: Coordinator, start_device: StartDevice) -> None:
    device = start_device()
    coordinator.bring_in()
    coordinator.assign()
    first = coordinator.wait(Update)
    device.crash()
    coordinator.wait(Presence, online=False, detail="connection lost")
    start_device()
    coordinator.wait(Register)
    coordinator.welcome()
    again = coordinator.wait(Update)
    assert again == first
    coordinator.pull(again)


def test_work_goes_on_while_the_broker_is_away(
    coordinator: Coordinator, start_device: StartDevice, mosquitto: Any
) -> None:
    start_device()
    coordinator.bring_in()
    assignment = coordinator.assign(hyper={"num_local_steps": 60})
    coordinator.wait(Status, state=DeviceState.TRAINING)
    mosquitto.kill()
    mosquitto.start()
    coordinator.wait(Register)
    coordinator.welcome()
    update = coordinator.wait(Update)
    assert (update.key.round_number, update.key.attempt) == (1, 1)
    trained = decode_tensors(coordinator.pull(update))
    manifest = coordinator.artifact.manifest
    AdapterLayout.of(manifest, lora_of(assignment).plan.open(manifest), ARM.rank).check(trained)
    assert trained["classifier.weight"].any()


def test_messages_that_are_no_messages_are_survived(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    for payload in (b"", b"garbage", encode_message(Presence(device_id=DEVICE, session_id="x", online=True))):
        coordinator.link.publish(f"fedspine/v1/{FLEET}/down/{DEVICE}/welcome", payload)
    coordinator.assign()
    assert coordinator.wait(Update).key.round_number == 1
    assert coordinator.silence(Presence, 0.3), "it is still there"


def test_messages_for_another_device_are_ignored(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    coordinator.assign(5, device_id="other")
    coordinator.assign(1)  # if the first were believed, this would be an older one
    assert coordinator.wait(Update).key.round_number == 1


def test_the_end_of_the_run_ends_the_device_that_wants_it(coordinator: Coordinator, start_device: StartDevice) -> None:
    device = start_device(exit_when_finished=True)
    coordinator.bring_in()
    finish(coordinator)
    coordinator.wait(Presence, online=False, detail="the run is over")
    assert device.wait() == ExitCode.OK


def test_the_end_of_the_run_leaves_other_devices_waiting(coordinator: Coordinator, start_device: StartDevice) -> None:
    start_device()
    coordinator.bring_in()
    finish(coordinator)
    coordinator.wait(Status, state=DeviceState.DONE)
    assert coordinator.silence(Presence, 0.3), "it has not said good-bye"
    coordinator.hello()
    assert coordinator.wait(Register).device_id == DEVICE


def test_stopping_says_good_bye_in_the_middle_of_work(coordinator: Coordinator, start_device: StartDevice) -> None:
    device = start_device()
    coordinator.bring_in()
    coordinator.assign(hyper={"num_local_steps": 100_000})
    coordinator.wait(Status, state=DeviceState.TRAINING)
    device.agent.stop(ExitCode.INTERRUPTED, "stopped by SIGINT")
    assert coordinator.wait(Presence).detail == "stopped by SIGINT"
    assert device.wait() == ExitCode.INTERRUPTED


def test_no_message_exceeds_the_limit(coordinator: Coordinator, start_device: StartDevice, mosquitto: Any) -> None:
    """Heard by somebody who would also hear larger ones; the adapter is larger than a message may be."""
    tap = MqttLink(
        BrokerAddress.parse(mosquitto.url),
        client_id="tap",
        subscriptions=("#",),
        will=None,
        max_message_bytes=100 * limits.MAX_MESSAGE_BYTES,
        rng=random.Random(0),
    )
    tap.connect()
    start_device()
    coordinator.bring_in()
    manifest, rank = coordinator.artifact.manifest, 128
    coordinator.full = initial(manifest, coordinator.artifact.initial(), rank, np.random.default_rng(0))
    coordinator.assign(arm=Arm(pruning_ratio=0.0, rank=rank))
    update = coordinator.wait(Update)
    blob = coordinator.pull(update)
    coordinator.verdict(update)
    coordinator.wait(Status, state=DeviceState.IDLE)
    tap.close()
    events = [tap.events.get_nowait() for _ in range(tap.events.qsize())]
    sizes = [len(event.payload) for event in events if isinstance(event, Received)]
    assert limits.CHUNK_BYTES < max(sizes) <= limits.MAX_MESSAGE_BYTES < len(blob)
