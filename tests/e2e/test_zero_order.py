"""``fedspine run --method fedspzo`` as a whole: what goes over the wire, and kill -9 on either side."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from broker_server.experiments.run.preparation import free_port
from broker_server.serving.storage.events import RoundStarted, UpdateAccepted
from edge_runtime.errors import ExitCode
from edge_runtime.wire import topics
from edge_runtime.wire.messages import Update, decode_message
from tests.e2e.processes import Run, fedspine_run, report_of, wait_for_event
from tests.e2e.rows import Copy
from tests.e2e.tap import Tap

pytestmark = pytest.mark.e2e

ROUNDS, STEPS = 3, 10
FEDSPZO: dict[str, Any] = {
    "method": "fedspzo",
    "arms": "4",
    "scheduler": "fixed",
    "sparsity": 0.0,
    "learning_rate": 2e-2,
    "final_learning_rate_ratio": 1.0,
    "rounds": ROUNDS,
    "local_steps": STEPS,
    "compact": False,
}
MOST_BYTES = 1024


@pytest.fixture(scope="module")
def whole(prepared_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tap, Run]:
    """A run that nothing happened to, and what was heard of it."""
    from broker_server.experiments.run.resolve import kept_settings
    from broker_server.options import changed

    root = tmp_path_factory.mktemp("zero-order") / "run"
    shutil.copytree(prepared_classifier, root)
    port = free_port()
    settings = changed(kept_settings(root / "run.toml"), {**FEDSPZO, "broker_port": port})
    (root / "run.toml").write_text(settings.to_toml())
    with Tap(port) as tap:
        run = fedspine_run("--resume", "--out", str(root))
    assert run.process.returncode == 0, run.errors
    return root, tap, run


def packet_bytes(topic: str, payload: bytes) -> int:
    """Of MQTT 3.1.1's PUBLISH at QoS 1: fixed header, topic with its length, packet identifier, payload."""
    remaining = 2 + len(topic.encode()) + 2 + len(payload)
    length = 1
    while remaining >= 128**length:
        length += 1
    return 1 + length + remaining


def sent(tap: Tap) -> dict[tuple[str, int], Counter[str]]:
    """Bytes on the wire by device and round, and by kind of message; what comes before an update is of its round."""
    since: dict[str, Counter[str]] = {}
    found: dict[tuple[str, int], Counter[str]] = {}
    for topic, payload in dict.fromkeys(tap.up):  # what was not answered in time is said again
        device_id, kind = topics.sender(topic), topic.rpartition("/")[2]
        counter = since.setdefault(device_id, Counter())
        counter[kind] += packet_bytes(topic, payload)
        message = decode_message(payload)
        if isinstance(message, Update):
            found.setdefault((device_id, message.key.round_number), Counter()).update(counter)
            counter.clear()
    return found


def test_a_round_takes_a_device_less_than_a_kilobyte(whole: tuple[Path, Tap, Run]) -> None:
    """All that it publishes but for status: ten steps of four scalars, their message, and what it asks for."""
    root, tap, _ = whole
    heard = sent(tap)
    assert len(heard) == 3 * ROUNDS
    for (device_id, number), by_kind in heard.items():
        if number > 1:
            own = {kind: size for kind, size in by_kind.items() if kind not in {"status", "register", "presence"}}
            assert sum(own.values()) < MOST_BYTES, (device_id, number, own)
            assert own["update"] < 900, own
    report = report_of(root)
    for entry in report["rounds"][2:]:
        for device in entry["devices"]:
            told, on_wire = device["method"]["bytes_up"], heard[device["device_id"], entry["round_number"]]["update"]
            assert 4 * 4 * STEPS < told < on_wire < told + 120, "the difference is the topic and MQTT's header"


def test_devices_bring_their_model_up_to_date_by_the_log(whole: tuple[Path, Tap, Run]) -> None:
    """The first round of scalars is begun with the server's model; later ones without, where that is quicker."""
    _, tap, _ = whole
    pulled = {(device_id, number) for (device_id, number), by_kind in sent(tap).items() if by_kind["chunkrequest"]}
    assert {device_id for device_id, number in pulled if number == 2} == {"device-1", "device-2", "device-3"}
    assert sum(number > 2 for _, number in pulled) < 3


def test_it_tells_its_gain_over_the_probe(whole: tuple[Path, Tap, Run]) -> None:
    root, _, run = whole
    report = report_of(root)
    works = [{device["work"] for device in entry["devices"]} for entry in report["rounds"][1:]]
    assert works == [{"probe"}, *[{"zero_order"}] * (ROUNDS - 1)]
    over = report["over_first_work"]
    first, last = report["rounds"][1], report["rounds"][-1]
    assert (over["round_number"], over["accuracy"], over["loss"]) == (1, first["accuracy"], first["loss"])
    assert over["loss_fall"] == pytest.approx(first["loss"] - last["loss"])
    assert over["loss_fall"] > 0
    assert "over the probe that it began with: " in run.output
    assert {device["not_finite"] for entry in report["rounds"][2:] for device in entry["devices"]} == {0}


def run_killed_on_both_sides(root: Path) -> None:
    """Kill a device and the coordinator in round 3, and go on to the end."""
    with Run("--resume", "--out", str(root)) as run:
        answered = (2, "device-3")
        wait_for_event(
            root,
            lambda event: isinstance(event, UpdateAccepted) and (event.round_number, event.device_id) == answered,
            run,
        )
        run.child("start", "device-3").suspend()  # so that round 3 stays open
        wait_for_event(root, lambda event: isinstance(event, RoundStarted) and event.round_number == 3, run)
        run.child("start", "device-2").kill()
        wait_for_event(root, lambda event: isinstance(event, UpdateAccepted) and event.round_number == 3, run)
        run.child("coordinate").kill()
        assert run.wait() == ExitCode.RUN_FAILED
    resumed = fedspine_run("--resume", "--out", str(root))
    assert resumed.process.returncode == 0, resumed.errors


def test_killed_on_both_sides_it_ends_with_the_same_bits(
    whole: tuple[Path, Tap, Run], prepared_classifier: Path, copy_of: Copy
) -> None:
    root = copy_of(prepared_classifier, **FEDSPZO)

    run_killed_on_both_sides(root)

    outcomes = {device["outcome"] for entry in report_of(root)["rounds"] for device in entry["devices"]}
    assert outcomes == {"accepted"}
    for number in range(ROUNDS + 1):
        name = f"adapters/round-{number:04d}.safetensors"
        assert (root / name).read_bytes() == (whole[0] / name).read_bytes()


# ---- fleets that mix -----------------------------------------------------------------------------------------------


def test_a_mixed_fleet_killed_on_both_sides_ends(prepared_classifier: Path, copy_of: Copy) -> None:
    """One of three devices trains first-order in round 2, all take zero-order steps in the last."""
    mixing = {"method": "zowarmup", "arms": "first-order:4,zero-order:4", "aggregation": "ffa_lora"}
    root = copy_of(prepared_classifier, **{**FEDSPZO, **mixing, "first_order_rounds": 3, "rounds": 4})

    run_killed_on_both_sides(root)

    report = report_of(root)
    rounds = report["rounds"][1:]
    assert [[device["outcome"] for device in entry["devices"]] for entry in rounds] == [["accepted"] * 3] * 4
    works = [Counter(device["work"] for device in entry["devices"]) for entry in rounds]
    assert works[0] == {"probe": 3}
    assert works[1].keys() == works[2].keys() == {"lora", "zero_order"}
    assert works[3] == {"zero_order": 3}
    for device in (device for entry in rounds[1:] for device in entry["devices"]):
        is_small = device["method"]["bytes_up"] < MOST_BYTES
        assert is_small == (device["work"] == "zero_order"), device
    assert report["over_first_work"]["round_number"] == 1


# ---- all weights --------------------------------------------------------------------------------------------------


FEDKSEED: dict[str, Any] = {
    **FEDSPZO,
    "method": "fedkseed",
    "tune": "all",
    "zo_cut": 0,
    "zo_inner": 1,
    "zo_seeds": 32,
    "zo_epsilon": 1e-3,
    "learning_rate": 1e-5,
    "compact": True,
}


def test_all_weights_are_tuned_and_killed_on_both_sides_end_with_the_same_bits(
    prepared_classifier: Path, copy_of: Copy, tmp_path: Path
) -> None:
    """A whole run and one that is killed give the same models: a checkpoint, and a compact model of it."""
    import torch
    import transformers

    from edge_runtime.inference import CompactModel

    undisturbed = copy_of(prepared_classifier, **{**FEDKSEED, "compact": False})
    first = fedspine_run("--resume", "--out", str(undisturbed))
    assert first.process.returncode == 0, first.errors
    assert f"model:         {undisturbed / 'adapters' / 'whole'} (a whole checkpoint" in first.output
    undisturbed = undisturbed.rename(tmp_path / "undisturbed")

    root = copy_of(prepared_classifier, **FEDKSEED)
    run_killed_on_both_sides(root)
    rounds = [f"adapters/round-{number:04d}.safetensors" for number in range(ROUNDS + 1)]
    for name in [*rounds, "adapters/whole/model.safetensors"]:
        assert (root / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert len({(root / name).read_bytes() for name in rounds}) == ROUNDS + 1

    report = report_of(root)
    works = [{device["work"] for device in entry["devices"]} for entry in report["rounds"][1:]]
    assert works == [{"probe"}, *[{"seed_pool"}] * (ROUNDS - 1)]
    assert {device["outcome"] for entry in report["rounds"] for device in entry["devices"]} == {"accepted"}
    assert len({entry["loss"] for entry in report["rounds"][1:]}) == ROUNDS, "the server evaluates what was tuned"
    sizes = [device["method"]["bytes_up"] for entry in report["rounds"][2:] for device in entry["devices"]]
    assert 4 * STEPS < min(sizes) <= max(sizes) < MOST_BYTES

    model = transformers.AutoModelForSequenceClassification.from_pretrained(root / "adapters" / "whole")
    compact = CompactModel.open(root / "compact", num_threads=1)
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 5, 6, 7]]), torch.ones(2, 4, dtype=torch.int64)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.numpy()
    assert abs(compact.logits(ids.numpy(), mask.numpy()) - logits).max() < 1e-4
