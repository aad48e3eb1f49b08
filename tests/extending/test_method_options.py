"""Options of a package's method, from where a person gives them to the device that is told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from broker_server import cli
from broker_server.config import CoordinatorConfig
from broker_server.errors import ConfigError
from broker_server.experiments.run.layout import JobState, RunDirectory
from broker_server.experiments.run.resolve import resolve
from broker_server.experiments.run.resume import begun, check_changes, reopened
from broker_server.experiments.run.settings import RunSettings
from broker_server.options import flat
from broker_server.serving.coordinator.process import RESOLVED_FILE, run_coordinator
from broker_server.serving.services import fleets
from broker_server.serving.storage.store import Store
from edge_runtime.formats.tensors import encode_tensors
from edge_runtime.wire.messages import Assignment, Verdict
from edge_runtime.wire.work import PluginWork
from tests.broker_server import fleet, tiny
from tests.broker_server.experiments.compare.samples import comparison
from tests.broker_server.links import InProcess, open_link

pytestmark = pytest.mark.usefixtures("plugin")

RUN: dict[str, object] = {
    "task": "text-classification",
    "model": "m",
    "data": "d.jsonl",
    "method": "class_means",
    "compact": False,
}
DEFAULT = "largest_norm=100.0"


def said(**changes: object) -> object:
    return flat(resolve({**RUN, **changes})).get("method_options")


def test_they_are_given_as_text_or_as_a_table_and_else_have_their_defaults(tmp_path: Path) -> None:
    assert said() == DEFAULT
    assert said(method_options="largest_norm=5") == "largest_norm=5.0"
    assert said(method_options={"largest_norm": 5}) == "largest_norm=5.0"
    file = tmp_path / "run.toml"
    file.write_text("[method_options]\nlargest_norm = 6\n")
    assert flat(resolve(RUN, file))["method_options"] == "largest_norm=6.0"
    assert flat(resolve({**RUN, "method_options": "largest_norm=7"}, file))["method_options"] == "largest_norm=7.0"


def test_a_preset_s_own_are_under_those_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedspine_example.class_means as module  # type: ignore[import-not-found] # installed by the fixture

    plain, own = module.CLASS_MEANS, {"method_options": {"largest_norm": 8}}
    preset = dataclasses.replace(plain, settings=lambda shared: {**plain.settings(shared), **own})
    monkeypatch.setattr(module, "CLASS_MEANS", preset)
    name = "fedspine_example.class_means:CLASS_MEANS"
    assert said(method=name) == "largest_norm=8.0"
    assert said(method=name, method_options="largest_norm=5") == "largest_norm=5.0"


def test_a_comparison_plays_a_method_under_several(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").touch()
    tables = {
        "short": {"preset": "class_means", "method_options": {"largest_norm": 1}},
        "long": {"preset": "class_means", "method_options": "largest_norm=50"},
    }
    shared = {name: RUN[name] for name in ("task", "model", "data")} | {"rounds": 1, "arms": "0.0:4"}
    made = comparison(methods=[*tables, "class_means"], method=tables, run=shared)
    found = [flat(made.settings(key))["method_options"] for key in made.run_keys if key.seed == made.seeds[0]]
    assert found == ["largest_norm=1.0", "largest_norm=50.0", DEFAULT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method_options": "largest=1"}, "--method-options: 'largest' is not known; did you mean 'largest_norm'?"),
        ({"method_options": {"largest_norm": "1"}}, "--method-options: largest_norm is '1', expected a finite number "),
        ({"method_options": "largest_norm=0"}, "--method-options: largest_norm is 0.0, expected a finite number above"),
        ({"method": "probe", "method_options": DEFAULT}, f"--method-options is {DEFAULT}, but probe does not use it"),
        (
            {"method": "probe", "method_options": {"largest_norm": 100.0}},
            f"--method-options is {DEFAULT}, but probe does not use it",
        ),
        ({"method": "", "method_options": DEFAULT}, f"--method-options is {DEFAULT}, but a run without a method does"),
        ({"method_options": 5}, "--method-options is 5, expected text"),
    ],
)
def test_what_the_method_does_not_have_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({**RUN, **changes})
    assert str(caught.value).startswith(message)


def test_a_run_keeps_them(tmp_path: Path) -> None:
    settings = resolve({**RUN, "method_options": "largest_norm=5"})
    directory = RunDirectory(tmp_path)
    directory.settings_file.write_text(settings.to_toml())
    directory.save_state(begun(settings, JobState(run_id="run-1", created_at=0.0)))
    assert reopened(directory, {})[0] == settings
    with pytest.raises(ConfigError, match="leave out --method-options"):
        check_changes(["method_options"])
    directory.settings_file.write_text(settings.to_toml().replace("=5.0", "=6.0"))
    with pytest.raises(ConfigError, match=r"method_options was 'largest_norm=5.0' when the first round began and is"):
        reopened(directory, {})


def test_methods_shows_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.call(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    about = "features with a larger Euclidean norm are scaled down to it (default: 100.0)."
    assert lines[lines.index("Options that methods have for themselves (--method-options NAME=VALUE,...):") + 1] == (
        f"  class_means: largest_norm, a finite number above 0 to 1000000: {about}"
    )

    assert cli.call(["methods", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["class_means"]["options"] == [
        {
            "name": "largest_norm",
            "expected": "a finite number above 0 to 1000000",
            "default": 100.0,
            "about": about,
        }
    ]
    assert found["class_means"]["work"] == "class_means"
    assert "options" not in found["fedspine"]


# ---- the coordinator -------------------------------------------------------------------------------------------------


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    monkeypatch.setattr(fleets, "LISTEN_S", 0.05)
    monkeypatch.setattr(tiny, "write_artifact", functools.partial(tiny.write_artifact, has_bias=True))
    one = InProcess()
    yield one
    one.forget()


def configured(run_dir: Path, url: str, table: str) -> Path:
    """A run whose ``config.toml`` has a table of options."""
    fleet.config(run_dir, url)
    file = run_dir / "config.toml"
    kept = tomllib.loads(file.read_text())
    head = "".join(
        f"{name} = {json.dumps(kept[name])}\n"
        for name in ("run_id", "fleet", "broker_url", "artifact_url", "artifact_digest", "num_devices", "rejoin_s")
    )
    training = "[training]\nnum_rounds = 1\nnum_local_steps = 1\nbatch_size = 4\nmax_length = 8\n"
    file.write_text(f'{head}method = "class_means"\n{training}{table}')
    return file


def sums(norm: float) -> bytes:
    """A reply over ten examples, five of each class, whose features have a norm and differ."""
    rows = np.zeros((2, tiny.HIDDEN), np.float32)
    rows[0, 0], rows[1, 1] = 5 * norm / 2, 5 * norm / 2
    return encode_tensors(
        {"features": rows, "squares": np.full(2, 5 * norm**2, np.float32), "counts": np.full(2, 5, np.float32)}
    )


def test_devices_are_told_and_judged_by_them_and_resolved_toml_has_them(broker: InProcess, tmp_path: Path) -> None:
    file = configured(tmp_path, broker.url, "[method_options]\nlargest_norm = 5\n")
    heard: list[object] = []

    def reply(norm: float, assignment: Assignment, _: bytes) -> bytes:
        assert isinstance(assignment.work, PluginWork)
        heard.append(assignment.work.settings)
        return sums(norm)

    with (
        fleet.Device(broker.url, "a", functools.partial(reply, 4.0)) as a,
        fleet.Device(broker.url, "b", functools.partial(reply, 6.0)) as b,
    ):
        run_coordinator(tmp_path, open_link(broker.url))

    assert heard == [{"largest_norm": 5.0}] * 2
    verdicts = [verdict for device in (a, b) for verdict in device.heard(Verdict) if isinstance(verdict, Verdict)]
    assert [verdict.accepted for verdict in verdicts] == [True, False]
    resolved = tmp_path / RESOLVED_FILE
    assert tomllib.loads(resolved.read_text())["method_options"] == {"largest_norm": 5.0}
    assert CoordinatorConfig.load(resolved) == CoordinatorConfig.load(file)
    with contextlib.closing(Store.open(tmp_path)) as store:
        assert [device.work for device in store.load_round_records()[1].devices] == ["class_means"] * 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[method_options]\nlargest = 5\n", "method_options: 'largest' is not known; did you mean 'largest_norm'?"),
        ("[method_options]\nlargest_norm = -5\n", "method_options: largest_norm is -5, expected a finite number above"),
        ("[method_options]\nlargest_norm = true\n", "method_options: largest_norm is True, expected a finite number"),
    ],
)
def test_a_table_that_is_wrong_is_named_with_its_file(
    table: str, message: str, broker: InProcess, tmp_path: Path
) -> None:
    file = configured(tmp_path, broker.url, table)
    with pytest.raises(ConfigError) as caught:
        CoordinatorConfig.load(file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_method_without_any_refuses_a_table_and_writes_none(broker: InProcess, tmp_path: Path) -> None:
    file = configured(tmp_path, broker.url, "[method_options]\nlargest_norm = 5\n")
    text = file.read_text().replace("class_means", "probe")
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"method_options is largest_norm=5, but probe does not use it: leave it out"):
        CoordinatorConfig.load(file)
    file.write_text(text[: text.index("[method_options]")])
    assert "method_options" not in CoordinatorConfig.load(file).to_toml()
    assert "method_options" not in flat(resolve({**RUN, "method": "probe"}))
    assert isinstance(resolve(RUN), RunSettings)
