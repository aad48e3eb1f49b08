"""A missing file does not mean a new run, and a damaged file is not used: one clear line, nothing overwritten."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker_server import cli
from broker_server.config import CoordinatorConfig
from broker_server.errors import StoreError
from broker_server.methods.rounds.types import Participant
from broker_server.serving.coordinator.process import run_coordinator
from broker_server.serving.coordinator.run_context import open_run
from broker_server.serving.storage.records import FileDigests, RoundRecord
from broker_server.serving.storage.store import Store, _cure
from edge_runtime.engine.artifact import Artifact
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.link.errors import BrokerUnreachableError
from tests.broker_server import fleet
from tests.broker_server.serving.storage import test_store

NOBODY = "mqtt://127.0.0.1:1"
"""A broker that is not there: a coordinator that comes so far has nothing against its directory."""


def record(round_number: int, files: FileDigests) -> RoundRecord:
    return RoundRecord(round_number=round_number, seconds=1.0, elapsed_s=1.0, evaluation=None, devices=(), files=files)


def play(run_dir: Path, num_rounds: int, *, notes_digests: bool = True) -> CoordinatorConfig:
    """Write the directory of a run with ``num_rounds`` finished rounds."""
    config = fleet.config(run_dir, NOBODY)
    store = Store.open(run_dir)
    run = open_run(run_dir, config, store)
    start = run.adapters.read(0)
    for number in range(num_rounds + 1):
        if number:
            run.adapters.write(number, start)
        files = FileDigests(adapter=run.adapters.digest(number), importance=run.importance_files.digest)
        assert files.adapter
        assert files.importance
        store.finish_round(record(number, files if notes_digests else FileDigests()), test_store.SCHEDULER_STATE, 1.0)
    store.close()
    return config


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run with two finished rounds."""
    play(tmp_path, 2)
    return tmp_path


def content(run_dir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and ".lock" not in path.name}


def goes_on(run_dir: Path) -> None:
    with pytest.raises(BrokerUnreachableError):
        run_coordinator(run_dir)


def rounds_of(run_dir: Path) -> list[int]:
    store = Store.open(run_dir)
    numbers = [one.round_number for one in store.load_round_records()]
    store.close()
    return numbers


def test_a_run_goes_on(finished: Path) -> None:
    adapters = content(finished / "adapters")
    goes_on(finished)
    goes_on(finished)  # as one that knows whose state it is
    assert rounds_of(finished) == [0, 1, 2]
    assert content(finished / "adapters") == adapters


@pytest.mark.parametrize("leave", ["missing", "empty"])
def test_a_lost_state_beside_finished_rounds_is_refused(
    finished: Path, leave: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in finished.glob("state.sqlite*"):
        path.unlink()
    if leave == "empty":
        (finished / "state.sqlite").touch()
    before = content(finished)
    assert cli.call(["coordinate", str(finished)]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"state.sqlite is {leave}, but adapters of 2 rounds lie beside it: put the file back" in line
    assert content(finished) == before


def test_a_lost_state_beside_updates_alone_is_refused(tmp_path: Path) -> None:
    fleet.config(tmp_path, NOBODY)
    (tmp_path / "updates/1").mkdir(parents=True)
    with pytest.raises(StoreError, match="updates lie beside it"):
        run_coordinator(tmp_path)


def test_a_run_that_ended_before_its_first_record_begins(tmp_path: Path) -> None:
    config = fleet.config(tmp_path, NOBODY)
    store = Store.open(tmp_path)
    open_run(tmp_path, config, store)
    store.close()
    (tmp_path / "state.sqlite").unlink()
    goes_on(tmp_path)
    assert rounds_of(tmp_path) == []
    assert (tmp_path / "adapters/round-0000.safetensors").is_file()


def test_a_state_that_is_older_than_the_adapters_is_refused(finished: Path) -> None:
    for number in (3, 4):
        shutil.copy(finished / "adapters/round-0002.safetensors", finished / f"adapters/round-{number:04d}.safetensors")
        if number == 3:
            goes_on(finished)  # its record may be what a crash cut off
    with pytest.raises(StoreError, match="knows 2 rounds, but an adapter of round 4"):
        run_coordinator(finished)


@pytest.mark.parametrize(
    "name", ["adapters/round-0002.safetensors", "importance.safetensors"], ids=["adapter", "importance"]
)
@pytest.mark.parametrize("place", [-1, -5, 200])
def test_a_flipped_bit_is_not_trained_on(finished: Path, name: str, place: int) -> None:
    data = bytearray((finished / name).read_bytes())
    data[place] ^= 1
    (finished / name).write_bytes(data)
    with pytest.raises(StoreError, match=r"cannot be used .*put .*file back"):
        run_coordinator(finished)


def test_a_store_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """No digest in its records, no word of whose it is: what is noted now holds from now on."""
    config = play(tmp_path, 1, notes_digests=False)
    with sqlite3.connect(tmp_path / "state.sqlite") as connection:
        for (text,) in list(connection.execute("SELECT record FROM rounds")):
            connection.execute("UPDATE rounds SET record = json_remove(record, '$.files') WHERE record = ?", (text,))
        assert [row[0] for row in connection.execute("SELECT key FROM meta")] == ["schema_version"]
    connection.close()
    goes_on(tmp_path)
    (tmp_path / "config.toml").write_text(dataclasses.replace(config, seed=7).to_toml())
    with pytest.raises(StoreError, match=r"a run with seed 0, its config\.toml says 7"):
        run_coordinator(tmp_path)


@pytest.mark.parametrize("changed", [{"run_id": "another"}, {"seed": 1}])
def test_another_run_is_refused(finished: Path, changed: dict[str, object]) -> None:
    goes_on(finished)
    config = CoordinatorConfig.load(finished / "config.toml")
    (finished / "config.toml").write_text(dataclasses.replace(config, **changed).to_toml())  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=f"a run with {next(iter(changed))} "):
        run_coordinator(finished)


def test_more_rounds_are_the_same_run(finished: Path) -> None:
    goes_on(finished)
    config = CoordinatorConfig.load(finished / "config.toml")
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, num_rounds=9))
    (finished / "config.toml").write_text(longer.to_toml())
    goes_on(finished)
    assert rounds_of(finished) == [0, 1, 2]


# ---- damage ----------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be looked at " * 200)


def become_directory(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


@pytest.mark.parametrize("damage", [cut, overwrite, become_directory])
@pytest.mark.parametrize(
    "name", ["state.sqlite", "adapters/round-0002.safetensors", "importance.safetensors", "config.toml", "events.jsonl"]
)
def test_damage_is_one_clear_line(
    finished: Path, damage: Callable[[Path], None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "events.jsonl").touch()
    damage(finished / name)
    code = cli.call(["coordinate", str(finished)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code != 0
    if name == "events.jsonl" and damage is not become_directory:
        assert "broker" in line  # it is for people: what cannot be read of it is passed over
        return
    assert name.rpartition("/")[2] in line
    assert "report it" not in line


@pytest.mark.parametrize("gone", ["artifacts", "adapters", "importance.safetensors", "config.toml"])
def test_a_directory_that_is_half_gone_is_one_clear_line(
    finished: Path, gone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert cli.call(["coordinate", str(finished)]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert gone in line
    assert "report it" not in line


def test_what_sqlite_says_has_its_cure() -> None:
    assert "another program" in _cure("database is locked")
    assert "may write" in _cure("attempt to write a readonly database")
    assert "may write" in _cure("unable to open database file")
    assert "from a copy" in _cure("database disk image is malformed")


def test_an_outcome_that_there_is_not_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(tmp_path)
    store.begin_round(1, test_store.open_participants("a", "b"), test_store.SCHEDULER_STATE, 1.0)
    store.close()
    with sqlite3.connect(tmp_path / "state.sqlite") as connection:
        connection.execute("UPDATE assignments SET outcome = 'vanished', reason = 'why not' WHERE device_id = 'a'")
    connection.close()
    store = Store.open(tmp_path)
    with caplog.at_level(logging.WARNING):
        opened = store.load_open_round()
    store.close()
    assert opened is not None
    assert opened.participants["a"] == Participant(device_id="a", attempt=1, arm=test_store.LARGE)
    assert any("'vanished'" in line for line in caplog.messages)


def test_importance_that_changed_is_refused(tmp_path: Path) -> None:
    config = fleet.config(tmp_path, NOBODY)
    assert Artifact.open(tmp_path / "artifacts" / config.artifact_digest)
    (tmp_path / "importance.safetensors").write_bytes(encode_tensors({"0.heads": np.ones(1, np.float32)}))
    with pytest.raises(StoreError, match="importance"):
        run_coordinator(tmp_path)
