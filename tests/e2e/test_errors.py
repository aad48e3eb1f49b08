"""Each thing that a person may get wrong: one clear line, its own exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from broker_server.experiments.run.preparation import free_port
from broker_server.experiments.run.settings import RunSettings
from broker_server.serving.services.broker import find_mosquitto
from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import FORMAT_VERSION, digest_of
from tests.conftest import Disk, save_bert
from tests.e2e.processes import error_line, fedspine_run, mosquitto, wait_for_port
from tests.e2e.rows import Copy, write_rows

pytestmark = pytest.mark.e2e


def _refused(root: Path, settings: RunSettings, code: ExitCode, part: str, **changes: object) -> None:
    """Start a run with changed settings; it must end with ``code`` and leave nothing."""
    options = {"model": settings.model, "task": settings.task, "data": settings.data, "test": settings.test, **changes}
    arguments = [word for key, value in options.items() if value for word in (f"--{key.replace('_', '-')}", str(value))]

    run = fedspine_run(*arguments, "--devices", "3", "--out", str(root))

    line = error_line(run)
    assert (run.process.returncode, part in line) == (code, True), line
    assert not root.exists()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


def _rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_model_that_is_not_there(root: Path, classify_settings: RunSettings) -> None:
    _refused(root, classify_settings, ExitCode.MODEL_NOT_FOUND, "does not exist", model="./none/here")


def test_a_model_of_an_unknown_family(root: Path, tmp_path: Path, classify_settings: RunSettings) -> None:
    model = tmp_path / "model"
    shutil.copytree(classify_settings.model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gpt2", "architectures": ["GPT2Model"]}))

    _refused(root, classify_settings, ExitCode.MODEL_UNSUPPORTED, "gpt2", model=model)


def test_data_without_the_field(root: Path, tmp_path: Path, classify_settings: RunSettings) -> None:
    data = _rows(tmp_path / "d.jsonl", {"body": "x", "label": "a"})

    _refused(root, classify_settings, ExitCode.DATA_INVALID, "line 1 has no field 'text'", data=data)


def test_data_without_examples(root: Path, tmp_path: Path, classify_settings: RunSettings) -> None:
    _refused(root, classify_settings, ExitCode.DATA_EMPTY, "holds no example", data=_rows(tmp_path / "d.jsonl"))


def test_an_unknown_label(root: Path, tmp_path: Path, classify_settings: RunSettings) -> None:
    test = _rows(tmp_path / "t.jsonl", {"text": "wave", "label": "sky"})

    _refused(root, classify_settings, ExitCode.UNKNOWN_LABEL, "line 1 has the label 'sky'", test=test)


def test_a_broker_that_is_not_there(root: Path, classify_settings: RunSettings) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"

    _refused(root, classify_settings, ExitCode.BROKER_UNREACHABLE, "127.0.0.1", broker=url)


@pytest.mark.skipif(find_mosquitto() is None, reason="no mosquitto here")
def test_a_broker_that_wants_a_password(root: Path, tmp_path: Path, classify_settings: RunSettings) -> None:
    port = free_port()
    (tmp_path / "passwords").write_text("")
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous false", f"password_file {tmp_path / 'passwords'}"]
    if os.geteuid() == 0:
        lines.append("user root")
    with mosquitto(str(find_mosquitto()), tmp_path, "\n".join(lines) + "\n"):
        wait_for_port(port)
        url = f"mqtt://somebody:wrong@127.0.0.1:{port}"
        _refused(root, classify_settings, ExitCode.BROKER_REFUSED, "127.0.0.1", broker=url)


@pytest.mark.parametrize("option", ["broker_port", "artifact_port"])
def test_a_port_that_is_taken(option: str, root: Path, classify_settings: RunSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _refused(root, classify_settings, ExitCode.PORT_TAKEN, f"port {port}", **{option: port})


def test_an_arm_outside_its_range(root: Path, classify_settings: RunSettings) -> None:
    _refused(root, classify_settings, ExitCode.ARM_OUT_OF_RANGE, "arm 0.97:8", arms="0.0:8,0.97:8")


@pytest.mark.parametrize(
    ("num_bytes", "part"), [(256 * 1024, "disk full"), (1536 * 1024, "export: disk full")], ids=["rows", "weights"]
)
def test_a_full_disk(
    num_bytes: int, part: str, small_disk: Disk, tmp_path: Path, classify_settings: RunSettings
) -> None:
    """The second disk has room for the rows and the graphs, not for the weights."""
    data = write_rows(tmp_path / "many.jsonl", 6000, seed=3)
    model = save_bert(tmp_path / "model", vocab_size=20_000)

    root = small_disk(num_bytes) / "run"

    _refused(root, classify_settings, ExitCode.DISK_FULL, part, data=data, model=model)


def test_a_damaged_artifact(prepared_classifier: Path, copy_of: Copy) -> None:
    root = copy_of(prepared_classifier)
    base = next(root.glob("artifacts/*/base.safetensors"))
    data = bytearray(base.read_bytes())
    data[-1] ^= 1
    base.write_bytes(data)

    run = fedspine_run("--resume", "--out", str(root))

    assert run.process.returncode == ExitCode.ARTIFACT_CORRUPTED, run.errors
    assert "base.safetensors" in error_line(run)


def test_an_artifact_of_another_version(prepared_classifier: Path, copy_of: Copy) -> None:
    root = copy_of(prepared_classifier)
    manifest = next(root.glob("artifacts/*/manifest.json"))
    data = manifest.read_bytes().replace(b'"format_version": %d' % FORMAT_VERSION, b'"format_version": 99')
    manifest.write_bytes(data)
    old, new = manifest.parent.name, digest_of(data)
    manifest.parent.rename(manifest.parent.with_name(new))
    (root / "job.json").write_text((root / "job.json").read_text().replace(old, new))

    run = fedspine_run("--resume", "--out", str(root))

    assert run.process.returncode == ExitCode.ARTIFACT_VERSION, run.errors
    assert "version 99" in error_line(run)


def test_devices_with_too_little_memory(prepared_classifier: Path, copy_of: Copy) -> None:
    root = copy_of(prepared_classifier, device_memory_mb=1)

    run = fedspine_run("--resume", "--out", str(root))

    assert run.process.returncode == ExitCode.INSUFFICIENT_MEMORY, run.errors
    assert "memory" in error_line(run)
