"""A password is in no list of processes and in no file that others may read."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from broker_server import cli
from broker_server.experiments.run import job
from broker_server.experiments.run.layout import RunDirectory, created
from broker_server.experiments.run.processes import Place, device_command, server_command, take_password
from broker_server.experiments.run.resolve import resolve
from broker_server.serving.coordinator.process import run_coordinator
from edge_runtime.link.address import PASSWORD_VARIABLE, read_password
from edge_runtime.link.errors import BrokerUnreachableError
from edge_runtime.system.files import PRIVATE_FILE, PRIVATE_FOLDER, write_atomically
from tests.broker_server import fleet

SECRET = "hunter2"  # noqa: S105 - to be looked for
URL = f"mqtt://lab:{SECRET}@127.0.0.1:1"


class Lines:
    """A display that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


def test_no_command_of_a_run_holds_it(tmp_path: Path) -> None:
    variables: dict[str, str] = {}
    settings = take_password(resolve({"broker": URL}), variables)
    directory = RunDirectory(tmp_path)
    place = Place(broker_url=settings.broker, fleet="run-1")
    commands = [
        device_command(settings, directory, "device-1", place, 0),
        server_command("coordinate", str(tmp_path)),
    ]
    assert not [part for command in commands for part in command if SECRET in part]
    assert variables == {PASSWORD_VARIABLE: SECRET}
    assert SECRET not in settings.to_toml()


def test_a_run_says_that_it_shows(tmp_path: Path) -> None:
    display = Lines()
    with pytest.raises(BrokerUnreachableError):
        job.prepare_run(resolve({"broker": URL}), tmp_path / "out", display)  # type: ignore[arg-type]
    (line,) = display.lines
    assert "--password-file" in line
    assert SECRET not in line


def test_a_run_directory_is_of_its_owner_alone(tmp_path: Path) -> None:
    with created(tmp_path / "out") as directory:
        write_atomically(directory.config_file, b"", is_private=True)
    assert (tmp_path / "out").stat().st_mode & 0o777 == PRIVATE_FOLDER
    assert directory.config_file.stat().st_mode & 0o777 == PRIVATE_FILE


def test_a_configuration_with_one_is_closed(tmp_path: Path) -> None:
    fleet.config(tmp_path, URL)
    with pytest.raises(BrokerUnreachableError):
        run_coordinator(tmp_path)
    assert (tmp_path / "config.toml").stat().st_mode & 0o777 == PRIVATE_FILE


@pytest.mark.parametrize("command", ["coordinate RUN", "run --broker mqtt://lab@127.0.0.1:1 --out x"])
def test_it_may_come_from_a_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.config(tmp_path, "mqtt://lab@127.0.0.1:1")
    (tmp_path / "password").write_text(f"{SECRET}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSWORD_VARIABLE, "")  # so that it is put back
    arguments = [str(tmp_path) if part == "RUN" else part for part in command.split()]
    assert cli.call([*arguments, "--password-file", "password"]) == 15
    assert os.environ[PASSWORD_VARIABLE] == SECRET
    assert SECRET not in capsys.readouterr().err


def test_a_file_that_all_may_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "password"
    path.write_text(SECRET)
    for mode, num_lines in ((0o600, 0), (0o640, 0), (0o644, 1)):
        path.chmod(mode)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_password(path) == SECRET
        assert len(caplog.messages) == num_lines
        assert SECRET not in caplog.text
