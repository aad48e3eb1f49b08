"""A package outside adds a method, a scheduler, a rule, a family and a callback; docs/extending.md is its code."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from broker_server import cli
from broker_server.experiments.run.resolve import resolve
from broker_server.methods.aggregation import make_aggregation
from broker_server.methods.rounds.types import Outcome
from broker_server.methods.scheduler import ArmOutcome, make_scheduler
from broker_server.options import flat
from broker_server.serving.callbacks import CallbackWorker, RunInfo, make_callbacks
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.services import fleets
from broker_server.serving.storage.events import RoundFinished
from broker_server.serving.storage.store import Store
from edge_runtime.formats import names
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.messages import FailureReason
from tests.broker_server import fleet
from tests.broker_server.links import InProcess, open_link
from tests.broker_server.methods.aggregation import samples
from tests.broker_server.report_samples import round_records
from tests.extending.conftest import SOURCE

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("plugin")


def test_the_method_is_listed_with_its_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["methods", "--json"]) == 0

    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["equal_voices"]["package"] == "fedspine-example"
    assert "error" not in found["equal_voices"]


def test_a_run_of_the_method_has_its_scheduler_and_its_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "LISTEN_S", 0.05)
    settings = flat(resolve({"method": "equal_voices", "emulate": "none", "rounds": 5}))
    assert (settings["scheduler"], settings["aggregation"], settings["ramp_rounds"]) == (
        "largest_first",
        "equal_voices",
        1,
    )
    broker = InProcess()
    made = {"method": "equal_voices", "scheduler": settings["scheduler"], "aggregation": settings["aggregation"]}
    fleet.config(tmp_path, broker.url, arms=LORA_AXES.parse("0.0:2,0.0:3"), callbacks="curve", **made)
    with fleet.Device(broker.url, "a"), fleet.Device(broker.url, "b"):
        run_coordinator(tmp_path, open_link(broker.url))
    broker.forget()
    with contextlib.closing(Store.open(tmp_path)) as store:
        records = store.load_round_records()
    assert {device.arm.rank for record in records for device in record.devices} == {3}
    assert [record.was_used for record in records] == [False, True, True]
    assert (tmp_path / "curve.csv").read_text() == "round,loss\n", "nothing is held out"


def test_the_scheduler_gives_the_largest_arm_that_fits() -> None:
    small, large, ranked = LORA_AXES.parse("0.5:4,0.0:8,0.0:4")
    scheduler = make_scheduler("largest_first", (small, large, ranked))
    rng = np.random.default_rng(0)

    assert scheduler.choose(1, ["a", "b"], rng) == {"a": large, "b": large}
    scheduler.observe(
        ArmOutcome(
            round_number=1,
            device_id="a",
            arm=large,
            sparsity=0.0,
            outcome=Outcome.FAILED,
            reason=FailureReason.ARM_INFEASIBLE,
        )
    )

    assert scheduler.choose(2, ["a", "b"], rng) == {"a": ranked, "b": large}


def test_the_rule_gives_all_devices_the_same_weight() -> None:
    updates = [
        samples.update("a", num_examples=1, rank=4, seed=1),
        samples.update("b", num_examples=99, rank=4, seed=2),
    ]
    rule = make_aggregation("equal_voices")

    result = rule.aggregate(samples.MANIFEST, samples.before(), updates, samples.rng())

    for target in samples.MANIFEST.targets:
        for name in (names.lora_a(target.module), names.lora_b(target.module)):
            mean = (updates[0].tensors[name].astype(np.float64) + updates[1].tensors[name]) / 2
            np.testing.assert_allclose(result.adapter[name], mean, rtol=1e-6)


def test_the_callback_writes_a_line_a_round(tmp_path: Path) -> None:
    said: list[str] = []
    with CallbackWorker(make_callbacks("curve"), said.append) as worker:
        worker.run_started(RunInfo(run_id="run-1", directory=tmp_path, task="causal-lm", settings={}, axes=LORA_AXES))
        for record in round_records(2):
            worker.happened(RoundFinished(at=0.0, record=record))

    assert said == []
    assert (tmp_path / "curve.csv").read_text() == "round,loss\n0,6.0\n1,5.0\n2,4.0\n"


@pytest.mark.parametrize("arm", ["0.0:8", "0.5:3", "uneven:5"])
def test_gradients_of_the_family_are_those_of_pytorch(arm: str, seed_oss: tuple[Path, Path]) -> None:
    from tests.exporter import reference

    model, artifact = seed_oss
    manifest = reference.manifest_of(artifact)
    chosen = reference.arms(manifest)[arm]
    adapter = reference.random_adapter(manifest, chosen)
    batch = reference.random_batch(manifest, 3, 9)

    loss, gradients = reference.graph_gradients(artifact, chosen, adapter, batch)

    expected_loss, expected = reference.TorchReference(model, manifest, chosen, adapter).gradients(batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert max(reference.relative_error(gradients[name], expected[name]) for name in expected) <= 1e-5


@pytest.fixture(scope="module")
def seed_oss(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model with biases for queries, keys and values alone, and its artifact."""
    from exporter.artifact.export import export_model
    from tests.conftest import save_llama

    folder = tmp_path_factory.mktemp("seed-oss")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))
        model = save_llama(folder / "model", "seed_oss", attention_bias=True, attention_out_bias=False)
        manifest, _ = export_model(model, "causal-lm", folder / "artifact")
    assert manifest.family == "seed_oss"
    return model, folder / "artifact"


def test_the_page_shows_the_package_as_it_is() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    files = {
        str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.rglob("*"))
        if path.suffix in {".py", ".toml"} and path.name != "__init__.py"
    }

    assert shown == files
