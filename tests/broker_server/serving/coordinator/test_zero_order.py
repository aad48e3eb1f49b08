"""Zero-order tuning through the coordinator: head, log, restarts; scripted devices that hold their own model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from broker_server.errors import StoreError
from broker_server.methods.method import Combined, Method
from broker_server.methods.tables import ZeroOrderConfig
from broker_server.methods.training import TrainingConfig
from broker_server.methods.zero_order.method import ZeroOrder
from broker_server.serving.storage.adapters import adapter_path
from broker_server.serving.storage.records import DeviceRecord
from broker_server.serving.storage.store import Store
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.payload import Payload, decode_payload, encode_payload
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.probe import encode_statistics, sum_features
from edge_runtime.formats.tensors import decode_with_octets
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.messages import Assignment, FailureReason, Update, Welcome, encode_message
from edge_runtime.wire.work import Arm, ProbeWork, ZeroOrderWork
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.replay import apply_round
from tests.broker_server import fleet, tiny
from tests.broker_server.conftest import Coordination
from tests.broker_server.fleet import Device
from tests.broker_server.links import InProcess
from tests.replies import payload_of

Coordinate = Callable[[Path], Coordination]
RANK, STEPS, ROUNDS = 3, 10, 4
LAYOUT = AdapterLayout.of(tiny.manifest(has_bias=True), Plan.full(tiny.manifest()), RANK)


@pytest.fixture(autouse=True)
def _model_with_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "write_artifact", functools.partial(tiny.write_artifact, has_bias=True))


class Board:
    """A device by script: sums in the first round, then scalars by round; it does logged rounds to the model it had."""

    def __init__(self, absent: tuple[int, ...] = (), not_finite: int = 0) -> None:
        self.absent = absent
        self.not_finite = not_finite
        self.held: tuple[int, bytes] | None = None
        """Round, and the model that it began."""
        self.num_rebuilt = 0
        self.logged: list[list[int]] = []

    def measure(self, work: ZeroOrderWork, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Scalars of a round."""
        del work
        return rng.normal(size=(STEPS, 4))

    def __call__(self, assignment: Assignment, blob: bytes) -> bytes | FailureReason:
        rng = np.random.default_rng([ord(assignment.key.device_id), assignment.key.round_number])
        if isinstance(assignment.work, ProbeWork):
            features = rng.normal(size=(10, tiny.HIDDEN)).astype(np.float32)
            return encode_statistics(sum_features(features, (features[:, 0] > 0).astype(np.int64), 2))
        work = assignment.work
        assert isinstance(work, ZeroOrderWork)
        if assignment.key.round_number in self.absent:
            return FailureReason.INTERNAL
        self.logged.append([one.round_number for one in work.log])
        self._rebuild(work, blob)
        self.held = assignment.key.round_number, blob
        scalars = self.measure(work, rng).astype(np.float32)
        if work.largest_scalar is not None:
            scalars = scalars.clip(-np.float32(work.largest_scalar), np.float32(work.largest_scalar))
        return encode_reply(scalars, self.not_finite)

    def _rebuild(self, work: ZeroOrderWork, blob: bytes) -> None:
        """The model that it makes from its own by the log is the one that it was sent, to the last bit."""
        if self.held is None or not work.log:
            return
        number, before = self.held
        flat = LAYOUT.flatten(decode_payload(before).adapter)
        for one in work.log:
            if one.round_number >= number:
                parts = TunedParts.of(tiny.manifest(has_bias=True), RANK, one.cut)
                apply_round(flat, parts, work.seed, one)
        assert encode_payload(Payload(adapter=LAYOUT.unflatten(flat))) == blob
        self.num_rebuilt += 1


class SteepBelow(Board):
    """Its scalars say that nine tenths of the gradient are below the cut, wherever that is."""

    def measure(self, work: ZeroOrderWork, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        self.cuts.append(work.cut)
        shape = work.num_local_steps, work.num_outer, work.num_inner
        values = 0.9 * rng.choice([-1, 1], (*shape[:2], 1)) + 0.3 * rng.choice([-1, 1], shape)
        return np.asarray(values, np.float64).reshape(shape[0], -1)

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[int] = []


def prepare(run_dir: Path, url: str, head: str = "probe", **changes: object) -> None:
    training = TrainingConfig(num_rounds=ROUNDS, num_local_steps=STEPS, batch_size=2, max_length=8, learning_rate=0.02)
    fleet.config(
        run_dir,
        url,
        **{
            "method": "fedspzo",
            "arms": (Arm(pruning_ratio=0.0, rank=RANK),),
            "training": training,
            "zero_order": ZeroOrderConfig(head=head),  # type: ignore[arg-type]
            **changes,
        },
    )


def play(broker: InProcess, run_dir: Path, coordinate: Coordinate, a: Board, b: Board) -> list[Device]:
    running = coordinate(run_dir)
    with Device(broker.url, "a", a) as first, Device(broker.url, "b", b) as second:
        running.finish()
    return [first, second]


def records(run_dir: Path) -> list[dict[str, DeviceRecord]]:
    return [{d.device_id: d for d in record.devices} for record in Store.open(run_dir).load_round_records()]


def bytes_of(device: DeviceRecord) -> int:
    """Bytes of a device's reply."""
    assert device.method is not None
    return device.method.bytes_up


def test_a_head_of_the_probe_then_scalars_of_few_bytes(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    prepare(tmp_path, broker.url, wire_dtype="float16")
    a, b = Board(), Board(not_finite=2)
    first, _ = play(broker, tmp_path, coordinate, a, b)

    welcome, *_ = first.heard(Welcome)
    assert isinstance(welcome, Welcome)
    assert welcome.work == "zero_order"
    rounds = records(tmp_path)
    assert [{d.work for d in one.values()} for one in rounds[1:]] == [{"probe"}, *[{"zero_order"}] * 3]
    assert [one["b"].not_finite for one in rounds[1:]] == [None, 2, 2, 2]
    assert all(d.outcome == "accepted" and d.adapter_delta is None for one in rounds for d in one.values())
    sent = [bytes_of(d) for one in rounds[2:] for d in one.values()]
    assert all(160 < number < 1000 for number in sent if number is not None), "40 scalars, and what is said of them"
    assert None not in sent
    assert a.logged == [[], [2], [3]]
    assert (a.num_rebuilt, b.num_rebuilt) == (2, 2)
    files = [adapter_path(tmp_path, number) for number in range(ROUNDS + 1)]
    models = [decode_with_octets(file.read_bytes())[0] for file in files]
    moved = [
        {name for name, value in one.items() if not np.array_equal(value, other[name])}
        for one, other in itertools.pairwise(models)
    ]
    assert moved[0] == {"classifier.weight", "classifier.bias"}
    assert moved[1:] == [{name for name in LAYOUT.shapes if "lora_A" not in name}] * 3


def test_bytes_of_a_reply_are_those_of_its_message(broker: InProcess, tmp_path: Path, coordinate: Coordinate) -> None:
    prepare(tmp_path, broker.url, "as-it-is")
    board, sizes = Board(), []
    running = coordinate(tmp_path)
    a = Device(broker.url, "a", board)
    say = a.say

    def counted(message: object, **given: object) -> None:
        if isinstance(message, Update):
            sizes.append((message.key.round_number, len(encode_message(message))))
        say(message, **given)  # type: ignore[arg-type]

    a.say = counted  # type: ignore[method-assign]
    with a, Device(broker.url, "b", Board()):
        running.finish()
    told = [(number, bytes_of(one["a"])) for number, one in enumerate(records(tmp_path)) if one]
    assert told == sorted(set(sizes))


def test_a_device_that_missed_rounds_gets_them_and_ends_with_the_same_bits(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    prepare(tmp_path, broker.url, "as-it-is")
    a, b = Board(), Board(absent=(2, 3))
    play(broker, tmp_path, coordinate, a, b)
    assert [one["b"].outcome for one in records(tmp_path)[1:]] == ["accepted", "failed", "failed", "accepted"]
    assert a.logged == [[], [1], [2], [3]]
    assert b.logged == [[], [1, 2, 3]]
    assert (a.num_rebuilt, b.num_rebuilt) == (3, 1)
    works = [work.work for work in Store.open(tmp_path).load_works(fleet.RUN, 4).values()]
    assert [work.log for work in works if isinstance(work, ZeroOrderWork)] == [(), ()], "tens of kilobytes are not kept"


@pytest.mark.parametrize("head", ["probe", "as-it-is"])
def test_a_restart_in_the_middle_of_a_round_gives_the_same_bits(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    """The coordinator ends when both updates of round 3 are accepted and none is combined; a new one goes on."""
    for name in ("whole", "cut"):
        prepare(tmp_path / name, broker.url, head)
    play(broker, tmp_path / "whole", coordinate, Board(), Board())
    combine = ZeroOrder.combine

    def fail(made: Method, round_number: int, *rest: object) -> Combined:
        if round_number == 3:
            msg = "cut"
            raise StoreError(msg)
        return combine(made, round_number, *rest)  # type: ignore[arg-type]

    boards = Board(), Board()
    with monkeypatch.context() as patched:
        patched.setattr(ZeroOrder, "combine", fail)
        with pytest.raises(StoreError, match="cut"):
            play(broker, tmp_path / "cut", coordinate, *boards)
    play(broker, tmp_path / "cut", coordinate, *boards)
    for number in range(ROUNDS + 1):
        whole, cut = (adapter_path(tmp_path / name, number).read_bytes() for name in ("whole", "cut"))
        assert whole == cut, "the log beside the model too"
    assert boards[0].logged[-1] == [3], "it combined round 3 itself, so that it knows who was in it"
    assert boards[0].num_rebuilt == (2 if head == "probe" else 3)


def test_the_cut_moves_and_is_the_same_after_a_restart_in_the_middle_of_a_round(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is played to its end; of another, the coordinator ends in each round before that is combined."""
    monkeypatch.setattr(tiny, "LAYERS", 4)
    layout = AdapterLayout.of(tiny.manifest(has_bias=True), Plan.full(tiny.manifest()), RANK)
    monkeypatch.setattr(f"{__name__}.LAYOUT", layout)
    moving = ZeroOrderConfig(head="as-it-is", move_cut=True, num_outer=7)
    combine, combined = ZeroOrder.combine, []

    def fail(made: Method, round_number: int, *rest: object) -> Combined:
        if round_number not in combined:
            combined.append(round_number)
            msg = "cut"
            raise StoreError(msg)
        return combine(made, round_number, *rest)  # type: ignore[arg-type]

    fleets = {name: (SteepBelow(), SteepBelow()) for name in ("whole", "cut")}
    for name in fleets:
        prepare(tmp_path / name, broker.url, zero_order=moving)
    play(broker, tmp_path / "whole", coordinate, *fleets["whole"])
    with monkeypatch.context() as patched:
        patched.setattr(ZeroOrder, "combine", fail)
        for _ in range(ROUNDS):
            with pytest.raises(StoreError, match="cut"):
                play(broker, tmp_path / "cut", coordinate, *fleets["cut"])
        play(broker, tmp_path / "cut", coordinate, *fleets["cut"])
    assert fleets["whole"][0].cuts[:3] == [3, 2, 1]
    assert [board.cuts for board in fleets["cut"]] == [board.cuts for board in fleets["whole"]]
    for number in range(ROUNDS + 1):
        whole, cut = (adapter_path(tmp_path / name, number).read_bytes() for name in fleets)
        assert whole == cut
    assert fleets["whole"][0].num_rebuilt == ROUNDS - 1, "devices do rounds at several cuts again, to the last bit"


def test_a_new_process_sends_all_of_the_log_to_devices_that_it_does_not_know(
    broker: InProcess, tmp_path: Path, coordinate: Coordinate
) -> None:
    prepare(tmp_path, broker.url, "as-it-is")
    boards = Board(), Board()
    play(broker, tmp_path, coordinate, *boards)
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace(f"num_rounds = {ROUNDS}", f"num_rounds = {ROUNDS + 1}"))
    devices = play(broker, tmp_path, coordinate, *boards)
    assert boards[0].logged == [[], [1], [2], [3], [1, 2, 3, 4]]
    assert boards[0].num_rebuilt == 4
    (assignment,) = devices[0].assignments()
    assert payload_of(assignment).size_bytes > 0, "whoever has nothing pulls the model"
