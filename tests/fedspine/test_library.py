"""Package ``fedspine``: what it loads, what its functions take, and that the script of docs/api.md works."""

from __future__ import annotations

import inspect
import logging
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fedspine
from broker_server.errors import ConfigError, RunExistsError
from broker_server.experiments.run.display import PlainDisplay, QuietDisplay, make_display
from broker_server.experiments.run.progress import render
from broker_server.experiments.run.settings import RunSettings
from broker_server.options import options_of
from broker_server.serving.report.encoding import encode
from broker_server.serving.report.schema import decode_report
from tests.broker_server import report_samples

ROOT = Path(__file__).resolve().parents[2]
SERVER = ("torch", "transformers", "onnx", "broker_server", "exporter", "models", "typer", "rich", "sqlalchemy")


def fresh(program: str, folder: Path, packages: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter with no server package, from another folder."""
    wall = f"""
        import sys
        class Wall:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {SERVER!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Wall())
    """
    code = textwrap.dedent(wall) + textwrap.dedent(program)
    environment = os.environ | {"PYTHONPATH": str(packages)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_board_loads_compact_models_without_the_server(tmp_path: Path) -> None:
    done = fresh(
        """
        import fedspine
        assert not {"numpy", "onnxruntime", "edge_runtime.inference"} & set(sys.modules)
        try:
            fedspine.load_compact("nowhere")
        except fedspine.FedSpineError as error:
            print(type(error).__name__, error)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CompactModelError nowhere")


@pytest.mark.parametrize("name", ["run", "export", "compact", "RunResult"])
def test_a_name_of_the_server_says_what_to_install(name: str, tmp_path: Path) -> None:
    done = fresh(
        f"""
        try:
            from fedspine import {name}
        except ImportError as error:
            print(type(error).__name__, error, error.exit_code)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"MissingServerError fedspine.{name} needs ")
    assert done.stdout.endswith("pip install 'fedspine[server]' 27\n")


@pytest.mark.slow
def test_the_wheel_of_a_board_has_the_device_alone(tmp_path: Path) -> None:
    built = subprocess.run([ROOT / "scripts" / "device-wheel", tmp_path], capture_output=True, text=True, check=True)
    with zipfile.ZipFile(built.stdout.strip()) as wheel:
        files = [Path(name) for name in wheel.namelist()]
        wheel.extractall(tmp_path / "site")
    inside = [path for path in files if not path.parts[0].endswith(".dist-info")]
    assert {path.parts[0] for path in inside} == {"edge_runtime", "fedspine"}
    assert {path.name for path in inside if path.parts[0] == "fedspine"} == {"__init__.py", "device.py", "py.typed"}
    assert sum((tmp_path / "site" / path).stat().st_size for path in files) < 2_000_000
    program = """
        import fedspine
        assert callable(fedspine.load_compact), fedspine.__file__
        try:
            fedspine.run
        except fedspine.MissingServerError as error:
            print(fedspine.__file__, error)
    """
    done = fresh(program, tmp_path, tmp_path / "site")
    assert done.stdout.startswith(f"{tmp_path / 'site'}/fedspine/__init__.py fedspine.run needs"), done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(fedspine, name) is not None for name in fedspine.__all__)
    assert set(fedspine.__all__) <= set(dir(fedspine))
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        fedspine.train  # noqa: B018 - the access is what is tested


def test_run_takes_the_options_of_the_command() -> None:
    own = {"out", "config", "resume"}
    library = inspect.signature(fedspine.run).parameters
    assert own < set(library)
    assert set(library) - {"quiet"} == set(options_of(RunSettings)) | own
    assert library["rounds"].annotation == int | None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 0}, "^rounds is 0, expected"),
        ({"ruonds": 2}, "did you mean 'rounds'"),
        ({"arms": "2:8"}, "^arms"),
        ({"data": Path("nowhere.jsonl")}, "^data file nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_setting_is_an_error_in_the_words_of_python(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(fedspine.FedSpineError, match=words) as caught:
        fedspine.run(tmp_path / "out", quiet=True, **settings)
    assert "--" not in str(caught.value).split(",")[0]
    assert not (tmp_path / "out").exists()


def test_a_file_of_settings_is_named_in_its_errors(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("rounds = 0\n")
    with pytest.raises(ConfigError, match=r"run\.toml: rounds is 0"):
        fedspine.run(tmp_path / "out", config=tmp_path / "run.toml", quiet=True)


def test_resume_refuses_what_a_run_keeps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out --seed"):
        fedspine.run(tmp_path, resume=True, seed=1, quiet=True)


def test_quiet_sends_the_lines_to_the_logger(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fedspine"), QuietDisplay() as display:
        display.step("reading the data")
    assert caplog.messages == ["reading the data"]
    assert capsys.readouterr().out == ""


def test_a_notebook_without_widgets_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert isinstance(make_display(sys.stdout, render), PlainDisplay)


def test_the_result_of_a_run_that_ended_is_read_from_its_directory(tmp_path: Path) -> None:
    report = report_samples.sample_report("text-classification")
    (tmp_path / "report.json").write_bytes(encode(report))
    result = fedspine.RunResult.read(str(tmp_path))
    assert result.report == decode_report(encode(report))
    assert result.curve.metric == "accuracy"
    assert result.curve.rounds == tuple(entry.round_number for entry in report.rounds)
    assert result.curve.values == tuple(entry.accuracy for entry in report.rounds)
    assert result.adapter == tmp_path / "adapters" / "peft"
    (tmp_path / "adapters" / "whole").mkdir(parents=True)
    assert fedspine.RunResult.read(tmp_path).adapter == tmp_path / "adapters" / "whole", "all weights were tuned"
    with pytest.raises(RunExistsError, match="no run that ended"):
        fedspine.RunResult.read(tmp_path / "other")


@pytest.mark.e2e
def test_the_script_of_the_documentation_runs_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    script = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "load_compact" in block)
    assert len(script.splitlines()) <= 15
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.png").stat().st_size > 5_000
    assert "training begins on 2 devices" in done.stdout
    assert len(done.stdout.splitlines()[-1]) > 5
    values = fedspine.RunResult.read(tmp_path / "out").curve.values
    assert len(values) == 3
    assert values[2] < values[0]
