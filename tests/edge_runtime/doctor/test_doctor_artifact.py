"""``fedspine-edge doctor`` sees whether the artifact of the fleet's run can be fetched from this board."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.doctor.broker import Trial, artifact
from edge_runtime.errors import ExitCode
from edge_runtime.formats.manifest import digest_of


@pytest.fixture
def folder(tiny_bert_artifact: Path, tmp_path: Path) -> Path:
    """An artifact, as it is served."""
    return Path(shutil.copytree(tiny_bert_artifact, tmp_path / "artifact"))


@pytest.fixture
def trial(folder: Path) -> Iterator[Trial]:
    """A trial in which a coordinator that serves ``folder`` answered."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Trial(
            address="mqtt://127.0.0.1",
            fleet="lab",
            coordinator="run-1",
            artifact_url=f"http://127.0.0.1:{server.server_address[1]}/",
            artifact_digest=digest_of((folder / "manifest.json").read_bytes()),
        )
        server.shutdown()


def test_an_artifact_that_is_there_is_named(trial: Trial) -> None:
    found = artifact(trial)
    assert found.level == "ok", found
    assert "manifest.json is there: tiny-bert, text-classification" in found.detail


def test_a_server_that_does_not_answer_is_an_error(trial: Trial) -> None:
    trial.artifact_url = "http://127.0.0.1:9/"
    found = artifact(trial)
    assert (found.level, found.exit_code) == ("error", ExitCode.ARTIFACT_UNREACHABLE)
    assert "127.0.0.1:9" in found.detail


def test_a_manifest_of_another_version_is_an_error(trial: Trial, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": 999}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = artifact(trial)
    assert (found.level, found.exit_code) == ("error", ExitCode.ARTIFACT_VERSION)


@pytest.mark.parametrize("text", ["{}", "no json", ""])
def test_what_is_no_manifest_is_an_error(trial: Trial, folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    assert artifact(trial).level == "error"


def test_the_manifest_of_another_artifact_is_an_error(trial: Trial) -> None:
    trial.artifact_digest = "0" * 64
    found = artifact(trial)
    assert (found.level, found.exit_code) == ("error", ExitCode.ARTIFACT_CORRUPTED)
    assert "not the manifest of the run" in found.detail


def test_an_artifact_that_the_options_do_not_allow_is_an_error_and_is_not_fetched(trial: Trial, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    trial.allowed_digests = "0" * 64
    found = artifact(trial)
    assert (found.level, found.exit_code) == ("error", ExitCode.USAGE)
    assert "--artifact-digest allows only 000000000000" in found.detail
    trial.allowed_digests, trial.allowed_hosts = None, "artifacts.example"
    assert "--artifact-host allows only artifacts.example" in artifact(trial).detail


def test_an_artifact_that_the_options_allow_is_fetched(trial: Trial) -> None:
    trial.allowed_digests, trial.allowed_hosts = f"{'0' * 64},{trial.artifact_digest}", "127.0.0.1"
    assert artifact(trial).level == "ok"


def test_without_a_coordinator_it_cannot_be_asked() -> None:
    assert artifact(Trial(address="mqtt://127.0.0.1")).level == "warning"
    assert artifact(Trial()).level == "skipped"
