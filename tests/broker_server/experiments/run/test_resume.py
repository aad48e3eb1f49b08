"""Settings that may change when a run goes on: more rounds, the results, where it runs; nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest

from broker_server import cli
from broker_server.errors import ConfigError, StoreError
from broker_server.experiments.run.layout import JobState, RunDirectory
from broker_server.experiments.run.resolve import kept_settings, resolve
from broker_server.experiments.run.resume import CHANGEABLE, COMPACT, MEASURE, begun, reopened
from broker_server.experiments.run.settings import RunSettings
from broker_server.options import options_of
from broker_server.serving.report.build import TRAINING_STEP
from broker_server.serving.storage.records import EvaluationRecord, RoundRecord
from broker_server.serving.storage.store import Store
from edge_runtime.errors import ExitCode
from edge_runtime.formats.run_directory import STATE_FILE

ALL_DONE = ("prepare", TRAINING_STEP, COMPACT, MEASURE)


def a_run(
    root: Path, *, rounds: int, finished: int, done: tuple[str, ...] = ALL_DONE, **options: object
) -> RunDirectory:
    """A run of so many rounds, of which some are finished."""
    settings = resolve({"rounds": rounds, "devices": 2, "method": "", "emulate": "none", **options})
    directory = RunDirectory(root)
    directory.settings_file.write_text(settings.to_toml())
    directory.save_state(begun(settings, JobState(run_id="run-1", created_at=0.0, done=done)))
    evaluation = EvaluationRecord(loss=1.0, accuracy=0.5, num_targets=9, is_complete=True, evaluate_s=0.1)
    with contextlib.closing(Store.open(root)) as store:
        for number in range(finished + 1):
            deploy = number > rounds - settings.pruning.deploy_rounds
            record = RoundRecord(
                round_number=number, seconds=1.0, elapsed_s=1.0, evaluation=evaluation, devices=(), is_deploy=deploy
            )
            store.finish_round(record, None, 0.0)
    return directory


def test_a_finished_run_with_more_rounds_trains_again_and_keeps_that(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=2, finished=2)

    settings, state = reopened(directory, {"rounds": 5})

    assert (settings.training.num_rounds, state.done) == (5, ("prepare",))
    assert resolve({}, directory.settings_file).training.num_rounds == 5
    assert directory.load_state() == state


@pytest.mark.parametrize("method", ["fedspine", "probe", "mezo"])
def test_a_run_of_any_method_goes_on(tmp_path: Path, method: str) -> None:
    classes = {"task": "text-classification", "model": "m", "data": "d.jsonl", "compact": False}
    directory = a_run(tmp_path, rounds=2, finished=1, done=("prepare",), method=method, **classes)
    begun_with = resolve({"rounds": 2, "devices": 2, "method": method, "emulate": "none", **classes})

    assert reopened(directory, {})[0] == begun_with
    assert reopened(directory, {"rounds": 4})[0].training.num_rounds == 4


def test_more_rounds_may_stand_in_the_file(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=1, finished=1)
    text = directory.settings_file.read_text()
    directory.settings_file.write_text(text.replace("rounds = 1\n", "rounds = 3\n", 1))

    settings, state = reopened(directory, {})

    assert (settings.training.num_rounds, TRAINING_STEP in state.done) == (3, False)


def test_a_finished_run_with_the_same_rounds_stays_as_it_is(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=2, finished=2)
    before = directory.job_file.read_bytes(), directory.settings_file.read_bytes()

    _, state = reopened(directory, {"rounds": 2})

    assert state.done == ALL_DONE
    assert (directory.job_file.read_bytes(), directory.settings_file.read_bytes()) == before


def test_an_interrupted_run_may_have_fewer_rounds_but_not_fewer_than_are_done(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=9, finished=3, done=("prepare",))

    assert reopened(directory, {"rounds": 4})[0].training.num_rounds == 4
    before = directory.settings_file.read_bytes()
    with pytest.raises(ConfigError, match=r"^--rounds is 2, but 3 are done: give more .*fedspine compact .* --round N"):
        reopened(directory, {"rounds": 2})
    assert directory.settings_file.read_bytes() == before


def test_fewer_rounds_in_the_file_are_said_of_the_file(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=3, finished=3)
    directory.settings_file.write_text(directory.settings_file.read_text().replace("rounds = 3\n", "rounds = 1\n", 1))
    with pytest.raises(ConfigError, match=r"run\.toml: rounds is 1, but 3 are done"):
        reopened(directory, {})


def test_what_a_run_keeps_cannot_be_changed_in_its_file(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=2, finished=1, done=("prepare",))
    text = directory.settings_file.read_text()
    directory.settings_file.write_text(text.replace("learning_rate = 0.003", "learning_rate = 0.1"))
    with pytest.raises(
        ConfigError, match=r"run\.toml: learning_rate was 0\.003 when the first round began and is 0\.1"
    ):
        reopened(directory, {"rounds": 4})


def as_written_before(directory: RunDirectory) -> None:
    """Names and values of earlier releases: ``fleet`` for ``emulate``, an empty one for none, fewer options."""
    lines = directory.settings_file.read_text().splitlines(keepends=True)
    old = ['fleet = ""\n' if line.startswith("emulate = ") else line for line in lines]
    directory.settings_file.write_text("".join(line for line in old if not line.startswith("max_grad_norm = ")))
    state = directory.load_state()
    begun_with = {name: value for name, value in state.begun_with.items() if name not in {"emulate", "max_grad_norm"}}
    directory.save_state(msgspec.structs.replace(state, begun_with={**begun_with, "fleet": ""}))


def test_a_run_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=2, finished=2)
    as_written_before(directory)

    settings, state = reopened(directory, {"rounds": 5})

    assert (settings.training.num_rounds, settings.is_emulated, settings.training.max_grad_norm) == (5, False, 1.0)
    assert state.done == ("prepare",)
    assert "fleet = " not in directory.settings_file.read_text()
    assert reopened(directory, {})[0] == settings


def test_another_form_of_the_compact_model_is_made_anew(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=2, finished=2)

    _, state = reopened(directory, {"quantize": "int8"})
    assert state.done == ("prepare", TRAINING_STEP)

    directory.save_state(msgspec.structs.replace(state, done=ALL_DONE))
    assert reopened(directory, {})[1].done == ALL_DONE  # made once


def test_more_rounds_follow_deploy_rounds_and_end_with_as_many_as_were_given(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=3, finished=3, deploy_rounds=1, sparsity=0.5)

    settings, state = reopened(directory, {"rounds": 20})

    assert (settings.training.num_rounds, settings.pruning.deploy_rounds, state.done) == (20, 1, ("prepare",))


def test_deploy_rounds_that_the_method_chose_are_chosen_again_for_all_rounds(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=10, finished=10, method="fedspine")
    assert kept_settings(directory.settings_file).pruning.deploy_rounds == 3

    settings, _ = reopened(directory, {"rounds": 30})

    assert (settings.pruning.deploy_rounds, settings.pruning.ramp_rounds) == (9, 1)  # the ramp is behind it
    assert kept_settings(directory.settings_file) == settings
    assert reopened(directory, {})[0] == settings
    assert reopened(directory, {"rounds": 40})[0].pruning.deploy_rounds == 12


def test_another_number_of_deploy_rounds_than_the_method_chose_stays(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=10, finished=10, method="fedspine", deploy_rounds=1)
    assert reopened(directory, {"rounds": 30})[0].pruning.deploy_rounds == 1


def test_deploy_rounds_of_the_rounds_to_come_may_be_given(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=10, finished=10, method="fedspine")

    assert reopened(directory, {"rounds": 20, "deploy_rounds": 3})[0].pruning.deploy_rounds == 3
    assert reopened(directory, {"rounds": 30})[0].pruning.deploy_rounds == 3

    text = directory.settings_file.read_text().replace("deploy_rounds = 3\n", "deploy_rounds = 2\n", 1)
    directory.settings_file.write_text(text)
    assert reopened(directory, {})[0].pruning.deploy_rounds == 2


def test_deploy_rounds_without_rounds_to_come_are_refused(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=3, finished=3, sparsity=0.5)
    before = directory.settings_file.read_text()

    with pytest.raises(ConfigError, match=r"^--deploy-rounds is 2, but all 3 rounds are done: give more --rounds$"):
        reopened(directory, {"deploy_rounds": 2})
    assert directory.settings_file.read_text() == before

    directory.settings_file.write_text(before.replace("deploy_rounds = 0\n", "deploy_rounds = 1\n", 1))
    with pytest.raises(ConfigError, match=r"run\.toml: deploy_rounds is 1, but all 3 rounds are done"):
        reopened(directory, {})


def test_a_lost_database_is_not_taken_for_a_run_without_rounds(tmp_path: Path) -> None:
    directory = a_run(tmp_path, rounds=3, finished=3)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "round-0003.safetensors").write_bytes(b"x")
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(StoreError, match="missing"):
        reopened(directory, {"rounds": 5})


@pytest.mark.parametrize("field", list(options_of(RunSettings)))
def test_every_option_is_changeable_or_refused_with_those_that_are(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"--{field.replace('_', '-')}"
    kind = options_of(RunSettings)[field].kind
    given = [name] if kind is bool else [name, "1"]

    code = cli.call(["run", "--resume", *given, "--out", "none"])

    line = capsys.readouterr().err
    if field in CHANGEABLE:
        assert "holds no run to resume" in line
        assert code == ExitCode.RUN_EXISTS
    else:
        assert f"leave out {name}; what may change is --rounds, " in line
        assert code == ExitCode.USAGE
