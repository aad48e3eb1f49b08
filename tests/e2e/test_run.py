"""``fedspine run`` as a whole: real processes, a real broker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from broker_server.experiments.run.preparation import free_port
from broker_server.experiments.run.settings import RunSettings
from broker_server.options import changed
from broker_server.serving.report.schema import decode_report
from broker_server.serving.services.broker import find_mosquitto
from edge_runtime.bounds.limits import MAX_MESSAGE_BYTES
from edge_runtime.inference import CompactModel
from tests.conftest import save_bert_classifier
from tests.e2e.processes import Run, fedspine_run, report_of
from tests.e2e.rows import Copy
from tests.e2e.tap import Tap

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "kind",
    [pytest.param("mosquitto", marks=pytest.mark.skipif(not find_mosquitto(), reason="no mosquitto here")), "amqtt"],
)
def test_a_classifier_is_tuned_pruned_and_reported(kind: str, prepared_classifier: Path, copy_of: Copy) -> None:
    port = free_port()
    root = copy_of(prepared_classifier, broker=kind, broker_port=port)
    with Tap(port) as tap:
        run = fedspine_run("--resume", "--out", str(root))

    assert run.process.returncode == 0, run.errors
    report = decode_report((root / "report.json").read_bytes())
    assert [entry.round_number for entry in report.rounds] == [0, 1, 2]
    assert all(device.outcome == "accepted" for entry in report.rounds for device in entry.devices)
    assert {(d.arm.pruning_ratio, d.arm.rank) for e in report.rounds for d in e.devices} == {
        (0.0, 4),
        (0.25, 4),
        (0.5, 2),
    }
    assert report.compact is not None
    assert 0.3 < report.compact.sparsity < 0.7
    assert CompactModel.open(root / report.compact.path).classify(["sea wind"])[0].label in {"land", "sea"}
    assert 0 < tap.largest_bytes <= MAX_MESSAGE_BYTES
    assert tap.kinds["update"] >= 6
    assert (root / "adapters" / "peft" / "adapter_config.json").is_file()
    assert "accuracy on " in run.output


def test_a_classifier_with_classes_of_its_own_from_the_command_line(
    classify_settings: RunSettings, tmp_path: Path
) -> None:
    """A run from its very beginning; the checkpoint's order of classes is not that of their names."""
    model = save_bert_classifier(tmp_path / "model", ("sea", "land"))
    root = tmp_path / "run"
    options = {
        "model": model,
        "task": classify_settings.task,
        "data": classify_settings.data,
        "test": classify_settings.test,
        "devices": 2,
        "rounds": 1,
        "local-steps": 2,
        "batch-size": 4,
        "max-length": 16,
        "arms": "0.0:4,0.5:2",
        "threads": 1,
        "out": root,
    }

    run = fedspine_run(*(word for name, value in options.items() for word in (f"--{name}", str(value))))

    assert run.process.returncode == 0, run.errors
    assert [entry["round_number"] for entry in report_of(root)["rounds"]] == [0, 1]
    assert CompactModel.open(root / "compact").info.labels == ("sea", "land")


@pytest.mark.slow
def test_a_run_without_options_learns(tmp_path: Path) -> None:
    """The promises of README: perplexity falls by three quarters, and a compact model and a report are left."""
    with Run(folder=tmp_path) as run:
        code = run.wait(timeout_s=1800.0)

    assert code == 0, run.errors
    report = report_of(tmp_path / "fedspine-run")
    before, after = (report["rounds"][n]["perplexity"] for n in (0, -1))
    assert max(after, report["final"]["perplexity"]) <= 0.25 * before
    assert report["final"]["perplexity"] < report["compact"]["perplexity"] <= 0.5 * before
    arms = [{d["device_id"]: str(d["arm"]) for d in r["devices"]} for r in report["rounds"][1:]]
    assert any(len(set(of_round.values())) > 1 for of_round in arms), "arms differ by device"
    assert any(len({of_round[device_id] for of_round in arms}) > 1 for device_id in arms[0]), "and move over the rounds"
    assert "emulated" in run.output
    assert "compact" in run.output
    assert CompactModel.open(tmp_path / "fedspine-run" / "compact").info.task == "causal-lm"


@pytest.fixture(scope="module")
def finished(prepared_generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its end."""
    root = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(prepared_generator, root)
    run = fedspine_run("--resume", "--out", str(root))
    assert run.process.returncode == 0, run.errors
    return root


def test_a_generator_is_tuned_and_its_compact_model_writes(finished: Path) -> None:
    report = report_of(finished)

    before, after = (report["rounds"][n]["perplexity"] for n in (0, -1))
    assert max(after, report["final"]["perplexity"]) < before
    assert report["compact"]["sample_prompt"]
    assert isinstance(report["compact"]["sample"], str)
    assert "<svg" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_finished_run_resumes_to_its_report_at_once(finished: Path) -> None:
    before = report_of(finished)

    again = fedspine_run("--resume", "--out", str(finished))

    assert again.process.returncode == 0, again.errors
    assert "training begins" not in again.output
    assert report_of(finished) == before


def test_an_earlier_artifact_is_used_and_a_compact_model_can_be_left_out(
    prepared_classifier: Path, classify_settings: RunSettings, tmp_path: Path
) -> None:
    (artifact,) = (prepared_classifier / "artifacts").iterdir()
    config = tmp_path / "settings.toml"
    settings = changed(classify_settings, {"artifact": str(artifact), "compact": False, "rounds": 1})
    config.write_text(settings.to_toml())
    root = tmp_path / "run"

    run = fedspine_run("--config", str(config), "--out", str(root))

    assert run.process.returncode == 0, run.errors
    assert "exporting" not in run.output
    assert report_of(root)["artifact_digest"] == artifact.name
    assert report_of(root)["compact"] is None
    assert not (root / "compact").exists()
    assert "compact model" not in run.output
